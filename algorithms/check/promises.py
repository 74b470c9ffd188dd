"""What every method promises, each as a check that is written from its definition.

A check takes a `Subject`, trains it for some steps on a problem of 51 parameters, and raises
`BrokenError` with a sentence where the promise is not kept, or `DoesNotApplyError`.
"""

import copy
import io
import pickle
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cser_bench.algorithms.check.problem import (
    ADAMW,
    COMPRESSORS,
    INTERVAL,
    NUMBERS,
    Method,
    Rows,
    batch_loss,
    compressor_settings,
    flat,
    make_model,
    make_optimizer,
    settings_for,
    taken_compressors,
    train,
)
from cser_bench.algorithms.check.processes import final_states, trained_by_processes
from cser_bench.algorithms.check.reference import HeavyBall
from cser_bench.algorithms.check.subject import Subject, lines_past_collectives
from cser_bench.algorithms.check.threads import run_workers
from cser_bench.algorithms.core.collectives import (
    Add,
    Collectives,
    Kind,
    StackedCollectives,
)
from cser_bench.algorithms.core.compressors import Identity
from cser_bench.algorithms.core.optimizer import DistributedOptimizer
from cser_bench.algorithms.core.topology import Mixing
from cser_bench.algorithms.core.traffic import TRAINING, Entry, Purpose

Check = Callable[[Subject], None]

FAMILIES = (
    "all sent",
    "bounds",
    "error reset",
    "error feedback",
    "local steps",
    "neighbours",
    "other",
)
"""What a method's `family` may be: reports have a colour for each."""

NUM_STEPS = 12
SAVED_AFTER = (3, 4, 6)
"""Steps between two synchronisations, and one with which an interval of 4 ends."""

ROUNDING = 1e-9
"""Tolerance for float64 sums that were added in another order."""


class BrokenError(Exception):
    """The promise is not kept; the message says what was seen."""


class DoesNotApplyError(Exception):
    """The method makes no such promise; the message says why."""


PROMISES: dict[str, Check] = {}
"""By their sentence, in the order in which they are checked."""


def promise(sentence: str) -> Callable[[Check], Check]:
    """Enter a check under the sentence that it holds a method to."""

    def enter(check: Check) -> Check:
        PROMISES[sentence] = check
        return check

    return enter


@promise("says what it is, and what it is to be tried with")
def describes_itself(subject: Subject) -> None:
    """Hold a method to a family that reports know, and to values for its settings.

    With these all that it declares must take place while it is checked.
    """
    method = subject.method
    if method.family not in FAMILIES:
        raise BrokenError(
            f"its family is {method.family!r}, for which reports have no colour; take one of "
            f"{', '.join(FAMILIES)}"
        )
    unknown = {
        *(method.no_compression or {}),
        *method.tried_with,
    } - method.declared.keys()
    if unknown:
        raise BrokenError(
            f"no_compression or tried_with has {', '.join(sorted(unknown))}, which is no setting "
            "of its own"
        )
    try:
        settings = settings_for(method)
        make_optimizer(method, make_model().parameters(), settings)
    except (TypeError, ValueError) as error:
        raise BrokenError(str(error)) from None
    _check_takes_place(method)


def _check_takes_place(method: Method) -> None:
    """Raise BrokenError where checks would not reach a stage or a compressor of the method."""
    taken = taken_compressors(method)
    if not taken:
        raise BrokenError(
            f"none of {', '.join(COMPRESSORS)} is what all its compressors may be, so nothing "
            "would be checked; state values for them in tried_with"
        )
    for name, compressor in taken.items():
        settings = settings_for(method, [compressor], INTERVAL)
        rows = Rows(method, settings, StackedCollectives(2), seed=3)
        with _named(name):
            _check_stages(rows.optimizer, settings)
            rows.train(range(1, NUM_STEPS + 1))
            for key in compressor_settings(method):
                without = Rows(
                    method, settings | {key: Identity()}, StackedCollectives(2), seed=3
                )
                without.train(range(1, NUM_STEPS + 1))
                if _did_the_same(rows, without):
                    raise BrokenError(
                        f"{key} changes nothing in {NUM_STEPS} steps, neither what is sent nor a "
                        "parameter, so it is not checked; state settings in tried_with with which "
                        f"it does (tried were {settings})"
                    )


def _check_stages(optimizer: DistributedOptimizer, settings: dict[str, Any]) -> None:
    for number, stage in enumerate(optimizer.stages(optimizer.replicas[0]), 1):
        if not any(stage.takes_place(step) for step in range(1, NUM_STEPS + 1)):
            raise BrokenError(
                f"stage {number} ({stage.purpose.value}, every {stage.every} steps) takes place in "
                f"none of {NUM_STEPS} steps, so it is not checked; state settings in tried_with "
                f"with which it does (tried were {settings})"
            )


def _did_the_same(one: Rows, other: Rows) -> bool:
    if one.optimizer.traffic.training() != other.optimizer.traffic.training():
        return False
    return all(torch.equal(one.rows[key], other.rows[key]) for key in one.rows)


@promise("talks through its collectives alone")
def talks_through_collectives(subject: Subject) -> None:
    """Hold a source to names other than those of `torch.distributed`."""
    lines = lines_past_collectives(subject.source)
    if lines:
        numbers = ", ".join(map(str, lines))
        raise BrokenError(
            f"line {numbers} of {subject.file} names torch.distributed, whose messages nobody "
            "counts; send by replica.exchange, mix, average or replica.collectives"
        )


@promise("begins at the parameters that it is given")
def begins_where_it_is_told(subject: Subject) -> None:
    """Make the optimiser, which moves nothing. Its first steps are held to SGD's below."""
    method = subject.method
    for name, compressor in taken_compressors(method).items():
        settings = settings_for(method, [compressor], INTERVAL)
        rows = Rows(method, settings, StackedCollectives(2))
        with _named(name):
            _check_same(
                rows.parameters_of(1), flat(make_model().parameters()), "at the start"
            )


@promise("without compression it is SGD on the mean gradient")
def is_sgd(subject: Subject) -> None:
    """Compare with torch's optimisers, under a schedule, while a layer is frozen for some steps."""
    method = subject.method
    if method.no_compression is None:
        raise DoesNotApplyError("no settings make it that, as it says")
    settings = settings_for(method)
    # Where models are not averaged, each worker's own model is the result: one worker is enough.
    num_workers = 3 if method.averages_models else 1
    plain = torch.optim.SGD if method.nesterov else HeavyBall
    options = {"nesterov": True} if method.nesterov else {}
    _compare(method, settings, NUMBERS, plain, options, num_workers)
    if method.sgd_alone is None:
        _compare(method, settings, ADAMW, torch.optim.AdamW, {}, 1)


def _compare(
    method: Method,
    settings: dict[str, Any],
    numbers: dict[str, Any],
    plain: Callable[..., torch.optim.Optimizer],
    options: dict[str, Any],
    num_workers: int,
) -> None:
    # Both sides are trained by one function, so that they cannot differ in what is asked of them.
    def trained(
        model: nn.Module, optimizer: torch.optim.Optimizer, ranks: range
    ) -> Tensor:
        for step in range(1, NUM_STEPS + 1):
            # A schedule changes the rate, and a script may freeze and thaw a layer.
            optimizer.param_groups[0]["lr"] = numbers["lr"] * (1 - step / 20)
            model[0].requires_grad_(not 3 <= step <= 5)  # type: ignore[index]
            optimizer.zero_grad()
            losses = [batch_loss(model, torch.float64, step, rank) for rank in ranks]
            torch.stack(losses).mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return flat(model.parameters())

    def work(collectives: Collectives) -> Tensor:
        # Worker 0's values count, whatever others begin with.
        model = make_model(torch.float64, collectives.rank)
        optimizer = make_optimizer(
            method, model.parameters(), settings, collectives, **numbers
        )
        return trained(model, optimizer, range(collectives.rank, collectives.rank + 1))

    model = make_model(torch.float64)
    known = {key: value for key, value in numbers.items() if key != "local_step"}
    given = {key: value for key, value in known.items() if value is not None}
    reference = plain(model.parameters(), **given, **options)
    expected = trained(model, reference, range(num_workers))
    for rank, found in enumerate(run_workers(work, num_workers)):
        distance = float((found - expected).abs().max())
        if not distance < ROUNDING:
            raise BrokenError(
                f"with {settings} worker {rank} of {num_workers} is {distance:.2g} from "
                f"{type(reference).__name__} after {NUM_STEPS} steps"
            )


@promise("sends the bits that it says beforehand, and counts all that it sends")
def sends_what_it_says(subject: Subject) -> None:
    """Hold the ledger to the closed form step by step, and to what was seen to travel."""
    method = subject.method
    for name, compressor in taken_compressors(method).items():
        settings = settings_for(method, [compressor], INTERVAL)

        def work(collectives: Collectives, settings: dict[str, Any] = settings) -> None:
            # The observer is told by the collectives themselves, which a method cannot skip; the
            # ledger is an object that it could write to.
            seen = _Seen()
            collectives.observer = seen.observe
            model = make_model(seed=collectives.rank)
            optimizer = make_optimizer(
                method, model.parameters(), settings, collectives
            )
            before = copy.deepcopy(optimizer.traffic.entries)
            for step in range(1, NUM_STEPS + 1):
                seen.bits = 0
                train(optimizer, model, collectives.rank, [step])
                after = copy.deepcopy(optimizer.traffic.entries)
                _check_bits(optimizer, step, before, after, seen.bits)
                before = after

        with _named(name):
            run_workers(work, 2)


class _Seen:
    """Adds up what collectives are seen to send, whatever the ledger says."""

    def __init__(self) -> None:
        self.bits = 0

    @contextmanager
    def observe(self, kind: Kind, group: str, num_bytes: int) -> Iterator[None]:
        yield
        self.bits += 8 * num_bytes


def _check_bits(
    optimizer: DistributedOptimizer,
    step: int,
    before: dict[Purpose, Entry],
    after: dict[Purpose, Entry],
    seen_bits: int,
) -> None:
    expected = optimizer.expected_traffic(step)
    for purpose in TRAINING:
        if after[purpose] != expected[purpose]:
            raise BrokenError(
                f"after step {step} it has sent {_traffic_in_words(after[purpose])} for {purpose.value}, "
                f"and _expected_traffic says {_traffic_in_words(expected[purpose])}"
            )
    # In the first step workers compare what they begin with.
    if step == 1:
        return
    for purpose in (Purpose.EVALUATION, Purpose.CONTROL):
        if after[purpose] != before[purpose]:
            raise BrokenError(
                f"in step {step} it sends under the purpose {purpose.value}, which is not counted "
                "as its cost"
            )
    counted_bits = sum(
        after[purpose].bits - before[purpose].bits for purpose in Purpose
    )
    if counted_bits != seen_bits:
        raise BrokenError(
            f"in step {step} it counts {counted_bits:,} bits, and {seen_bits:,} were seen to travel"
        )


def _traffic_in_words(entry: Entry) -> str:
    return f"{entry.bits:,} bits in {entry.collectives} collectives"


@promise("messages of 16 bits have half the bits")
def short_messages_are_half(subject: Subject) -> None:
    """Compare the closed forms, and the ledger with its own."""
    method = subject.method
    is_taken = False
    for name, compressor in taken_compressors(method).items():
        settings = settings_for(method, [compressor], INTERVAL)
        try:
            make_optimizer(
                method,
                make_model().parameters(),
                settings,
                communication_dtype=torch.float16,
            )
        except ValueError:
            # Encoded messages have a format of their own, and are refused.
            continue
        is_taken = True
        full = Rows(method, settings, StackedCollectives(2))
        short = Rows(
            method, settings, StackedCollectives(2), communication_dtype=torch.float16
        )
        short.train(range(1, NUM_STEPS + 1))
        with _named(name):
            _check_half(full.optimizer, short.optimizer)
    if not is_taken:
        raise DoesNotApplyError("it takes none, as it says")


def _check_half(full: DistributedOptimizer, short: DistributedOptimizer) -> None:
    whole_bits = full.expected_traffic(NUM_STEPS).training_bits
    short_bits = short.expected_traffic(NUM_STEPS).training_bits
    if 2 * short_bits != whole_bits:
        raise BrokenError(
            f"_expected_traffic says {short_bits:,} bits with 16-bit numbers and {whole_bits:,} "
            "without; a number has replica.float_bits"
        )
    if short.traffic.training_bits != short_bits:
        raise BrokenError(
            f"it sends {short.traffic.training_bits:,} bits, and _expected_traffic says "
            f"{short_bits:,}"
        )


@promise("goes on from a saved state to the bit")
def resumes(subject: Subject) -> None:
    """Go on from files as new optimisers, which know no more than that, of other numbers."""
    method = subject.method
    for name, compressor in taken_compressors(method).items():
        settings = settings_for(method, [compressor], INTERVAL)

        def work(collectives: Collectives, settings: dict[str, Any] = settings) -> None:
            rank = collectives.rank
            model = make_model(seed=rank)
            optimizer = make_optimizer(
                method, model.parameters(), settings, collectives, seed=3
            )
            files: dict[int, Any] = {}
            for step in range(1, NUM_STEPS + 1):
                train(optimizer, model, rank, [step])
                if step in SAVED_AFTER:
                    state = {
                        "model": model.state_dict(),
                        "optimizer": optimizer.state_dict(),
                    }
                    files[step] = _reloaded(state)
            for step, file in files.items():
                again = make_model(seed=7)
                # Its numbers and its model are others until the state is loaded: what does not come
                # from the file shows.
                resumed = make_optimizer(
                    method, again.parameters(), settings, collectives, lr=0.7
                )
                again.load_state_dict(file["model"])
                resumed.load_state_dict(file["optimizer"])
                train(resumed, again, rank, range(step + 1, NUM_STEPS + 1))
                _check_same(
                    flat(again.parameters()),
                    flat(model.parameters()),
                    f"resumed after step {step} and trained to step {NUM_STEPS}, worker {rank}",
                )

        with _named(name):
            run_workers(work, 2)


def _reloaded(state: Any) -> Any:
    """Return the state after a trip through a file, read with PyTorch's safe loader."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def _check_same(found: Tensor, expected: Tensor, who: str) -> None:
    different = int((found != expected).sum())
    if different:
        distance = float((found - expected).abs().max())
        raise BrokenError(
            f"{who}: {different} of {len(expected)} parameters differ, by up to {distance:.2g}"
        )


@promise("its memory is the state that a checkpoint holds")
def memory_is_state(subject: Subject) -> None:
    """Count the numbers of a state, and of tensors that the method keeps outside it."""
    method = subject.method
    for name, compressor in taken_compressors(method).items():
        settings = settings_for(method, [compressor], INTERVAL)
        rows = Rows(method, settings, StackedCollectives(1))
        rows.train(range(1, NUM_STEPS + 1))
        optimizer = rows.optimizer
        state = optimizer.state_dict()["param_groups"][0]["flat"]
        numel = 0
        for key, value in state.items():
            if isinstance(value, Tensor) and key != "parameters":
                numel += value.numel()
        known = optimizer.memory_in_parameters() * optimizer.flat.layout.numel
        with _named(name):
            if round(known) != numel:
                raise BrokenError(
                    f"it says {known:g} numbers, and its state has {numel}"
                )
            # Tensors outside the state are neither saved nor counted, even if they are never read.
            beside = [
                key
                for key, value in vars(optimizer).items()
                if isinstance(value, Tensor)
            ]
            if beside:
                raise BrokenError(
                    f"it keeps {', '.join(beside)} of its own; take replica.new_buffer or "
                    "new_common, so that it is saved and counted"
                )


@promise("workers agree after the steps that it says")
def agrees_when_it_says(subject: Subject) -> None:
    """Compare two workers' parameters after each step of which `agree_after` is true."""
    method = subject.method
    is_said = False
    for name, compressor in taken_compressors(method).items():
        settings = settings_for(method, [compressor], 3)

        def work(
            collectives: Collectives, settings: dict[str, Any] = settings
        ) -> list[tuple[bool, Tensor]]:
            model = make_model(torch.float64, collectives.rank)
            optimizer = make_optimizer(
                method, model.parameters(), settings, collectives
            )
            seen = []
            for step in range(1, 9):
                train(optimizer, model, collectives.rank, [step])
                seen.append((optimizer.agree_after(step), flat(model.parameters())))
            return seen

        with _named(name):
            first, second = run_workers(work, 2)
            for step, ((says, one), (_, other)) in enumerate(
                zip(first, second, strict=True), 1
            ):
                distance = float((one - other).abs().max())
                is_said |= says
                if says and not distance < ROUNDING:
                    raise BrokenError(
                        f"after step {step} it says that they do, and they are {distance:.2g} apart"
                    )
    if not is_said:
        raise DoesNotApplyError("it never says so: a last exchange is counted for it")


@promise("a frozen parameter stays as it is")
def frozen_stays(subject: Subject) -> None:
    """Train with a layer that is frozen from the first step on."""
    method = subject.method
    for name, compressor in taken_compressors(method).items():
        rows = Rows(
            method, settings_for(method, [compressor], INTERVAL), StackedCollectives(2)
        )
        key = "0.weight"
        # From the start, when all workers hold the same: a later average then changes nothing.
        rows.rows[key].requires_grad_(False)
        before = rows.rows[key].detach().clone()
        rows.train(range(1, NUM_STEPS + 1))
        after = rows.rows[key].detach()
        with _named(name):
            if method.family != "neighbours":
                _check_same(after[1].flatten(), before[1].flatten(), key)
                continue
            # What neighbours send of it differs where they choose by what is trained beside it.
            # Mixing then moves it apart, and keeps its mean.
            if not torch.allclose(after.mean(0), before[0]):
                raise BrokenError(f"{key}: its mean over workers moves")


@promise(
    "draws nothing from global generators: a run that is repeated is the same to the bit"
)
def repeats(subject: Subject) -> None:
    """Train twice, with global generators in other states."""
    method = subject.method
    for name, compressor in taken_compressors(method).items():
        settings = settings_for(method, [compressor], INTERVAL)
        ends = []
        for seed in (1, 2):
            with _global_seed(seed):
                # What a run without the method leaves of them, which is not the method's to change.
                make_model()
                untouched = _global_states()
            with _global_seed(seed):
                rows = Rows(method, settings, StackedCollectives(2), seed=3)
                rows.train(range(1, NUM_STEPS + 1))
                if _global_states() != untouched:
                    raise BrokenError("it sets a global generator, or draws from one")
            ends.append(rows.parameters_of(0))
        with _named(name):
            _check_same(ends[1], ends[0], "run again")


def _global_states() -> bytes:
    states = random.getstate(), np.random.get_state(), torch.get_rng_state().tolist()
    return pickle.dumps(states)


@contextmanager
def _global_seed(seed: int) -> Iterator[None]:
    """Set global generators, and put them back."""
    numpys = np.random.get_state()
    pythons = random.getstate()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpys)
            random.setstate(pythons)


@promise(
    "workers that are rows of one process do what workers of their own do, to the bit"
)
def rows_are_workers(subject: Subject) -> None:
    """Compare stacked workers with threads, which share nothing but what they send."""
    method = subject.method
    for name, compressor in taken_compressors(method).items():
        settings = settings_for(method, [compressor], INTERVAL)

        def work(
            collectives: Collectives, settings: dict[str, Any] = settings
        ) -> Tensor:
            model = make_model(seed=collectives.rank)
            optimizer = make_optimizer(
                method, model.parameters(), settings, collectives, seed=3
            )
            train(optimizer, model, collectives.rank, range(1, NUM_STEPS + 1))
            return flat(model.parameters())

        rows = Rows(method, settings, StackedCollectives(2), seed=3)
        rows.train(range(1, NUM_STEPS + 1))
        with _named(name):
            for rank, alone in enumerate(run_workers(work, 2)):
                _check_same(rows.parameters_of(rank), alone, f"row {rank}")


class _Cut(StackedCollectives):
    """Stacked workers of whose messages none arrives: zeros do in their place."""

    def _sum_(self, tensor: Tensor) -> None:
        tensor.zero_()

    def _gather(self, tensor: Tensor) -> Tensor:
        return torch.zeros_like(tensor)

    def _reduce_blocks(self, blocks: Tensor, add: Add) -> tuple[Tensor, Tensor]:
        return super()._reduce_blocks(torch.zeros_like(blocks), add)

    def _exchange(self, tensor: Tensor, mixing: Mixing) -> dict[int, Tensor]:
        raise DoesNotApplyError(
            "rows of neighbours are read where they lie; workers of their own are the check"
        )


@promise("no worker knows of another but by messages")
def workers_are_apart(subject: Subject) -> None:
    """Cut the wire: what one worker is given must then change nothing of another."""
    method = subject.method
    for name, compressor in taken_compressors(method).items():
        settings = settings_for(method, [compressor], INTERVAL)
        ends = []
        # Worker 0 has the same data both times, and worker 1 that of one rank or of another.
        for others in (1, 5):
            rows = Rows(method, settings, _Cut(2), data=[0, others], seed=3)
            rows.train(range(1, NUM_STEPS + 1))
            ends.append(rows.parameters_of(0).nan_to_num())
        with _named(name):
            _check_same(
                ends[1],
                ends[0],
                "worker 0, whose messages were all lost, where worker 1 has other data",
            )


@promise("workers that are processes do the same, but for rounding, and send the same")
def processes_are_rows(subject: Subject) -> None:
    """Compare stacked workers with two processes of a gloo group."""
    # Only here is there a process group that a method could reach past its collectives.
    by_rank = trained_by_processes(subject)
    for name, (parameters, sent) in final_states(
        subject, StackedCollectives(2)
    ).items():
        with _named(name):
            for rank, found in enumerate(by_rank):
                others, others_sent = found[name]
                if not torch.allclose(
                    others[0], parameters[rank], rtol=1e-4, atol=1e-5
                ):
                    distance = float((others[0] - parameters[rank]).abs().max())
                    raise BrokenError(
                        f"process {rank} is {distance:.2g} from row {rank}"
                    )
                if others_sent != sent:
                    raise BrokenError(
                        f"process {rank} sends {others_sent}, and a row {sent}"
                    )


@contextmanager
def _named(compressor: str) -> Iterator[None]:
    """Have it said with which compressor a promise is not kept."""
    try:
        yield
    except BrokenError as error:
        raise BrokenError(f"with {compressor}, {error}") from None
