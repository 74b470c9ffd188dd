"""A plain `torch.optim.Optimizer` that talks by `torch.distributed` itself, and what it says of itself.

Its file has functions of a model, that `make` an optimiser of it as its users do and, where there
are settings with which nothing is lost, `make_uncompressed` one with these. `make_plain` says which
optimiser that is on the mean gradient. `agree_after` says of a step, counted from 1, whether all
workers hold the same after it. Two processes train by it, and promises are held against what their
parameters were after each step. What it sends is not counted, as it says nothing of that.

The processes are started as `python -m cser_bench.algorithms.check.optimizers RANK FOLDER`.
"""

import ast
import io
import json
import sys
import tempfile
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cser_bench.algorithms.check.findings import Finding, report
from cser_bench.algorithms.check.outcomes import (
    NUM_STEPS,
    SAVED_AFTER,
    BrokenError,
    DoesNotApplyError,
)
from cser_bench.algorithms.check.problem import batch_loss, flat, make_model, train
from cser_bench.algorithms.check.processes import WORLD_SIZE, join_group, run_processes
from cser_bench.algorithms.check.subject import source_of
from cser_bench.algorithms.core.method_file import MethodFileError, module_of

Make = Callable[[nn.Module], torch.optim.Optimizer]

ROUNDING = 1e-5
"""Tolerance for float32 parameters of about 1 whose sums were added in another order."""

ONCE = "a training"
AGAIN = "a repeated training"
UNCOMPRESSED = "a training without compression"


@dataclass(frozen=True)
class OptimizerFile:
    """A source text with the functions, which messages call by its file."""

    source: str
    file: str

    @property
    def module(self) -> types.ModuleType:
        """What the text defines.

        Raises MethodFileError: it cannot be executed.
        """
        return module_of(self.source, self.file)


@dataclass(frozen=True)
class Trained:
    """What two processes came to.

    Attributes:
        parameters: after each step, by training, of shape (workers, steps, d).
        failure: the last words of a process that failed; trainings from there on are not there.
    """

    parameters: dict[str, Tensor]
    failure: str

    def __getitem__(self, training: str) -> Tensor:
        """Return the parameters of a training.

        Raises BrokenError: it failed.
        """
        if training not in self.parameters:
            raise BrokenError(self.failure)
        return self.parameters[training]


def makes_optimizer(path: Path) -> bool:
    """Say whether a file has a function `make`.

    Raises MethodFileError: it cannot be read.
    """
    try:
        tree = ast.parse(source_of(path))
    except SyntaxError:
        return False  # What is wrong is said when it is executed.
    return any(
        isinstance(node, ast.FunctionDef) and node.name == "make" for node in tree.body
    )


def optimizer_in(path: Path) -> OptimizerFile:
    """Return a file's source, after a look at whether it can be executed.

    Raises MethodFileError: it cannot, or one of two functions that belong together is missing.
    """
    subject = OptimizerFile(source_of(path), path.name)
    module = subject.module
    if hasattr(module, "make_uncompressed") != hasattr(module, "make_plain"):
        raise MethodFileError(
            f"{path.name} has one of make_uncompressed and make_plain; give both, or none where no "
            "settings lose nothing"
        )
    return subject


# What a process does.


def main(arguments: list[str]) -> None:
    """Be one of the processes."""
    rank = int(arguments[0])
    folder = Path(arguments[1])
    fields: dict[str, str] = json.loads((folder / "subject.json").read_text())
    module = OptimizerFile(**fields).module
    join_group(rank, folder)
    parameters: dict[str, Tensor] = {}
    for name, training in _trainings(module, rank):
        parameters[name] = training()
        # Each at once, so that those before one that fails are there.
        # (steps, d) by training
        torch.save(parameters, folder / f"{rank}.pt")
    dist.destroy_process_group()


def _trainings(
    module: types.ModuleType, rank: int
) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Yield what is trained, by name; those that may fail for a reason of their own come last."""
    yield ONCE, partial(_parameters_after, module.make, rank)
    yield AGAIN, partial(_parameters_after, module.make, rank)
    if hasattr(module, "make_uncompressed"):
        yield UNCOMPRESSED, partial(_parameters_after, module.make_uncompressed, rank)
    for step in SAVED_AFTER:
        yield _resumed(step), partial(_parameters_resumed, module.make, rank, step)


def _resumed(step: int) -> str:
    return f"a training that was resumed after step {step}"


def _parameters_after(make: Make, rank: int) -> Tensor:
    """Return a worker's parameters after each step, of shape (steps, d)."""
    model = make_model()
    return _train(make(model), model, rank, range(1, NUM_STEPS + 1))


def _train(
    optimizer: torch.optim.Optimizer, model: nn.Module, rank: int, steps: Iterable[int]
) -> Tensor:
    parameters = []
    for step in steps:
        train(optimizer, model, rank, [step])
        parameters.append(flat(model.parameters()))
    return torch.stack(parameters)


def _parameters_resumed(make: Make, rank: int, saved_after: int) -> Tensor:
    """Return what `_parameters_after` does, of the steps after those at which all was saved."""
    model = make_model()
    optimizer = make(model)
    train(optimizer, model, rank, range(1, saved_after + 1))
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    # A foreign optimiser may keep any object in its state; the file is this process's own.
    saved = torch.load(file, weights_only=False)
    # Another start, of which nothing may be left.
    model = make_model(seed=1)
    optimizer = make(model)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    return _train(optimizer, model, rank, range(saved_after + 1, NUM_STEPS + 1))


@cache
def _trained(subject: OptimizerFile) -> Trained:
    """Return what two processes come to, which all promises of a file are held against."""
    failure = ""
    with tempfile.TemporaryDirectory(prefix="cser-check-") as name:
        folder = Path(name)
        fields = {"source": subject.source, "file": subject.file}
        (folder / "subject.json").write_text(json.dumps(fields))
        try:
            run_processes(__name__, folder)
        except RuntimeError as error:
            failure = str(error)
        by_rank: list[dict[str, Tensor]] = []
        for rank in range(WORLD_SIZE):
            path = folder / f"{rank}.pt"
            by_rank.append(torch.load(path, weights_only=True) if path.exists() else {})
    parameters = {}
    for training in by_rank[0]:
        if all(training in trainings for trainings in by_rank):
            # (workers, steps, d)
            parameters[training] = torch.stack(
                [trainings[training] for trainings in by_rank]
            )
    return Trained(parameters, failure)


# What is held against it.


def is_plain(subject: OptimizerFile) -> None:
    """Compare with the plain optimiser on the mean of all workers' losses."""
    module = subject.module
    if not hasattr(module, "make_uncompressed"):
        raise DoesNotApplyError("it has no make_uncompressed and make_plain")
    uncompressed = _trained(subject)[UNCOMPRESSED]
    model = make_model()
    optimizer = module.make_plain(model)
    for step in range(1, NUM_STEPS + 1):
        optimizer.zero_grad()
        losses = [
            batch_loss(model, torch.float32, step, rank) for rank in range(WORLD_SIZE)
        ]
        torch.stack(losses).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        apart = float(
            (uncompressed[:, step - 1] - flat(model.parameters())).abs().max()
        )
        # Also refuses what is no number.
        if not apart <= ROUNDING:
            raise BrokenError(
                f"after step {step} a parameter is {apart:.2g} from that of make_plain's optimiser "
                "on the mean gradient"
            )


def resumes(subject: OptimizerFile) -> None:
    """Compare a training with ones that go on from saved states of model and optimiser."""
    trained = _trained(subject)
    once = trained[ONCE]
    if not torch.equal(once, trained[AGAIN]):
        raise BrokenError(
            "a training that is repeated is another, so it has no bits to keep"
        )
    for saved_after in SAVED_AFTER:
        rest = once[:, saved_after:]
        resumed = trained[_resumed(saved_after)]
        for index in range(rest.shape[1]):
            if not torch.equal(rest[:, index], resumed[:, index]):
                apart = float((rest[:, index] - resumed[:, index]).abs().max())
                raise BrokenError(
                    f"saved after step {saved_after} and resumed, a parameter is {apart:.2g} off "
                    f"after step {saved_after + index + 1}: something that counts is not in "
                    "state_dict"
                )


def agrees(subject: OptimizerFile) -> None:
    """Compare workers after the steps that it names, and after no others."""
    agree_after: Callable[[int], Any] | None = getattr(
        subject.module, "agree_after", None
    )
    if agree_after is None:
        raise DoesNotApplyError("it has no agree_after")
    named = [step for step in range(1, NUM_STEPS + 1) if agree_after(step)]
    if not named:
        raise DoesNotApplyError(f"it names none of the first {NUM_STEPS} steps")
    once = _trained(subject)[ONCE]
    for step in named:
        workers = once[:, step - 1]
        if not torch.equal(workers, workers[:1].expand_as(workers)):
            apart = float((workers - workers[0]).abs().max())
            raise BrokenError(
                f"after step {step} a parameter differs by {apart:.2g} among workers"
            )


OPTIMIZER_PROMISES: dict[str, Callable[[OptimizerFile], None]] = {
    "without compression it is its plain optimiser on the mean gradient": is_plain,
    "goes on from state_dict, its own and the model's, to the bit": resumes,
    "workers agree after the steps that it names": agrees,
}
"""By their sentence, in the order in which they are checked."""


def optimizer_finding_of(subject: OptimizerFile, promise: str) -> Finding:
    """Check one promise."""
    try:
        OPTIMIZER_PROMISES[promise](subject)
    except DoesNotApplyError as error:
        return Finding(promise, "none", str(error))
    except BrokenError as error:
        return Finding(promise, "FAIL", str(error))
    except Exception as error:
        words = " ".join(str(error).split()) or "no more is said"
        return Finding(promise, "FAIL", f"{type(error).__name__}: {words}")
    return Finding(promise, "ok")


def check_optimizer(path: Path) -> bool:
    """Print a line for each promise as it is checked; return whether all are kept.

    Raises MethodFileError: the file cannot be executed, or lacks a function.
    """
    subject = optimizer_in(path)
    findings = (
        optimizer_finding_of(subject, promise) for promise in OPTIMIZER_PROMISES
    )
    return report(f"the optimiser of {subject.file}", findings)


if __name__ == "__main__":
    main(sys.argv[1:])
