"""Checks that a method sends the bits that it says, and counts all that it sends."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from cser_bench.algorithms.check.outcomes import (
    NUM_STEPS,
    BrokenError,
    DoesNotApplyError,
    naming,
)
from cser_bench.algorithms.check.problem import (
    INTERVAL,
    Rows,
    make_model,
    make_optimizer,
    settings_for,
    taken_compressors,
    train,
)
from cser_bench.algorithms.check.subject import Subject
from cser_bench.algorithms.check.threads import run_workers
from cser_bench.algorithms.core.collectives import Collectives, Kind, StackedCollectives
from cser_bench.algorithms.core.optimizer import DistributedOptimizer
from cser_bench.algorithms.core.traffic import TRAINING, Entry, Purpose


def sends_what_it_says(subject: Subject) -> None:
    """Hold the ledger to the closed form step by step, and to what was seen to travel."""
    method = subject.method
    for name, compressor in taken_compressors(method).items():
        settings = settings_for(method, [compressor], INTERVAL)

        def work(collectives: Collectives, settings: dict[str, Any] = settings) -> None:
            # The observer is told by the collectives themselves, which a method cannot skip; the
            # ledger is an object that it could write to.
            seen = _Sent()
            collectives.observer = seen.observe
            model = make_model(seed=collectives.rank)
            optimizer = make_optimizer(
                method, model.parameters(), settings, collectives
            )
            before = copy.deepcopy(optimizer.traffic.entries)
            for step in range(1, NUM_STEPS + 1):
                seen.bits = 0
                train(optimizer, model, collectives.rank, [step])
                # A copy, as the ledger is written on.
                after = copy.deepcopy(optimizer.traffic.entries)
                _check_bits(optimizer, step, before, after, seen.bits)
                before = after

        with naming(name):
            run_workers(work, 2)


class _Sent:
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
        with naming(name):
            _check_half(full.optimizer, short.optimizer)
    if not is_taken:
        raise DoesNotApplyError("it takes none, as it says")


def _check_half(full: DistributedOptimizer, short: DistributedOptimizer) -> None:
    whole_bits = full.expected_traffic(NUM_STEPS).training_bits
    short_bits = short.expected_traffic(NUM_STEPS).training_bits
    # Exactly: in 16 bits a number has half of them, and nothing else is sent.
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
