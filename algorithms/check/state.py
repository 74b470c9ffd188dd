"""Checks that a state is whole, in files and as memory, and that nothing random stands beside it."""

import io
import pickle
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cser_bench.algorithms.check.outcomes import (
    NUM_STEPS,
    SAVED_AFTER,
    BrokenError,
    check_same,
    naming,
)
from cser_bench.algorithms.check.problem import (
    INTERVAL,
    Rows,
    flat,
    make_model,
    make_optimizer,
    settings_for,
    taken_compressors,
    train,
)
from cser_bench.algorithms.check.subject import Subject
from cser_bench.algorithms.check.threads import run_workers
from cser_bench.algorithms.core.collectives import Collectives, StackedCollectives


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
                check_same(
                    flat(again.parameters()),
                    flat(model.parameters()),
                    f"resumed after step {step} and trained to step {NUM_STEPS}, worker {rank}",
                )

        with naming(name):
            run_workers(work, 2)


def _reloaded(state: Any) -> Any:
    """Return the state after a trip through a file, read with PyTorch's safe loader."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


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
            # A state has the parameters where workers differ, and memory is counted without them.
            if isinstance(value, Tensor) and key != "parameters":
                numel += value.numel()
        stated_numel = optimizer.memory_in_parameters() * optimizer.flat.layout.numel
        with naming(name):
            if round(stated_numel) != numel:
                raise BrokenError(
                    f"it says {stated_numel:g} numbers, and its state has {numel}"
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
                # Compared as bytes: a draw that is undone by setting the state back is none.
                untouched = _global_states()
            with _global_seed(seed):
                rows = Rows(method, settings, StackedCollectives(2), seed=3)
                rows.train(range(1, NUM_STEPS + 1))
                if _global_states() != untouched:
                    raise BrokenError("it sets a global generator, or draws from one")
            ends.append(rows.parameters_of(0))
        with naming(name):
            check_same(ends[1], ends[0], "run again")


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
