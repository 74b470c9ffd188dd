"""Checks that workers agree when the method says so, and that only messages join them."""

from typing import Any

import torch
from torch import Tensor

from cser_bench.algorithms.check.outcomes import (
    NUM_STEPS,
    ROUNDING,
    BrokenError,
    DoesNotApplyError,
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
from cser_bench.algorithms.check.processes import final_states, trained_by_processes
from cser_bench.algorithms.check.subject import Subject
from cser_bench.algorithms.check.threads import run_workers
from cser_bench.algorithms.core.collectives import Add, Collectives, StackedCollectives
from cser_bench.algorithms.core.topology import Mixing


def agrees_when_it_says(subject: Subject) -> None:
    """Compare two workers' parameters after each step of which `agree_after` is true."""
    method = subject.method
    is_said = False
    for name, compressor in taken_compressors(method).items():
        # 8 steps then have two that synchronise, and steps before, between and after them.
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

        with naming(name):
            first, second = run_workers(work, 2)
            for step, ((says, one), (_, other)) in enumerate(
                zip(first, second, strict=True), 1
            ):
                # In float64, so that rounding is far below any difference that a method makes.
                distance = float((one - other).abs().max())
                is_said |= says
                if says and not distance < ROUNDING:
                    raise BrokenError(
                        f"after step {step} it says that they do, and they are {distance:.2g} apart"
                    )
    if not is_said:
        raise DoesNotApplyError("it never says so: a last exchange is counted for it")


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
        with naming(name):
            for rank, alone in enumerate(run_workers(work, 2)):
                check_same(rows.parameters_of(rank), alone, f"row {rank}")


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
        with naming(name):
            check_same(
                ends[1],
                ends[0],
                "worker 0, whose messages were all lost, where worker 1 has other data",
            )


def processes_are_rows(subject: Subject) -> None:
    """Compare stacked workers with two processes of a gloo group."""
    # Only here is there a process group that a method could reach past its collectives.
    by_rank = trained_by_processes(subject)
    for name, (parameters, sent) in final_states(
        subject, StackedCollectives(2)
    ).items():
        with naming(name):
            for rank, found in enumerate(by_rank):
                others, others_sent = found[name]
                # float32, and gloo may add in another order than the rows do.
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
