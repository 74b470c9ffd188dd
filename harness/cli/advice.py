"""What `advise` fills in itself: the numbers of an experiment's baseline, or the size of a saved model."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from harness.spec import SpecError


def filled(words: Sequence[str]) -> tuple[list[str], str]:
    """The words for the report's command, and a sentence on what was filled in; "" where nothing was.

    Words that are given count more than what the files say.

    Raises:
        SpecError: a file that is not there or cannot be read, or an experiment that cannot be planned.
    """
    own = argparse.ArgumentParser(prog="python -m harness advise", add_help=False, allow_abbrev=False)
    own.add_argument("--spec")
    own.add_argument("--model", type=Path)
    own.add_argument("--results", type=Path, default=Path("results"))
    if not any(word.split("=")[0] in ("--spec", "--model") for word in words):
        return list(words), ""
    options, rest = own.parse_known_args(words)
    found, said = _of_spec(options.spec, options.results) if options.spec else ({}, "")
    if options.model:
        found["--parameters"] = str(num_parameters_of(options.model))
        said = " ".join(filter(None, [said, f"{options.model} holds {int(found['--parameters']):,} parameters."]))
    given = {word.split("=")[0] for word in rest}
    if given & {"--layout", "--cluster"}:
        given.add("--workers")
    return [*rest, *(word for option, value in found.items() if option not in given for word in (option, value))], said


def _of_spec(name: str, results: Path) -> tuple[dict[str, str], str]:
    """Options by what the experiment's baseline, or else its first row, is."""
    from harness.plan.estimate import step_times
    from harness.plan.plan import plan_experiment

    planned = plan_experiment(name, results)
    rows = planned.experiment.rows
    row = next((row for row in rows if row.row == planned.experiment.baseline), rows[0])
    config = next(run.config for run in planned.runs if run.row == row.row)
    passes = step_times(config)[0]
    said = (
        f"{name}: {row.num_parameters:,} parameters, {row.num_steps:,} steps, {config.num_workers} workers, "
        f"{1e3 * passes.seconds:.3g} ms of compute ({passes.device}, {passes.basis})."
    )
    found = {
        "--parameters": str(row.num_parameters),
        "--steps": str(row.num_steps),
        "--workers": str(config.num_workers),
        "--compute-ms": f"{1e3 * passes.seconds:.6g}",
    }
    return found, said


def num_parameters_of(path: Path) -> int:
    """Numbers in the real tensors of a saved state_dict of a model, buffers among them.

    Raises:
        SpecError: the file is not there, or holds no tensors that can be read without running code.
    """
    import pickle

    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise SpecError(f"there is no file {path}; give --model a saved state_dict, or --parameters") from None
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, OSError):
        raise SpecError(f"{path} is no state_dict that torch.save wrote; give --parameters instead") from None
    total = _numbers(state)
    if total == 0:
        raise SpecError(f"{path} holds no real tensors; give --parameters instead")
    return total


def _numbers(state: object) -> int:
    import torch

    if isinstance(state, torch.Tensor):
        return state.numel() if state.is_floating_point() else 0
    if isinstance(state, dict):
        return sum(map(_numbers, state.values()))
    return sum(map(_numbers, state)) if isinstance(state, list | tuple) else 0
