"""Checks of what a method does to parameters: where it begins, what it is uncompressed, what stays."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cser_bench.algorithms.check.outcomes import (
    NUM_STEPS,
    ROUNDING,
    BrokenError,
    DoesNotApplyError,
    check_same,
    naming,
)
from cser_bench.algorithms.check.problem import (
    ADAMW,
    INTERVAL,
    NUMBERS,
    Method,
    Rows,
    batch_loss,
    flat,
    make_model,
    make_optimizer,
    settings_for,
    taken_compressors,
)
from cser_bench.algorithms.check.reference import HeavyBall
from cser_bench.algorithms.check.subject import Subject
from cser_bench.algorithms.check.threads import run_workers
from cser_bench.algorithms.core.collectives import Collectives, StackedCollectives


def begins_where_it_is_told(subject: Subject) -> None:
    """Make the optimiser, which moves nothing. Its first steps are held to SGD's below."""
    method = subject.method
    for name, compressor in taken_compressors(method).items():
        settings = settings_for(method, [compressor], INTERVAL)
        rows = Rows(method, settings, StackedCollectives(2))
        with naming(name):
            check_same(
                rows.parameters_of(1), flat(make_model().parameters()), "at the start"
            )


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
    # torch's optimisers are chosen by class, and have no such argument.
    of_torch = {key: value for key, value in numbers.items() if key != "local_step"}
    given = {key: value for key, value in of_torch.items() if value is not None}
    reference = plain(model.parameters(), **given, **options)
    expected = trained(model, reference, range(num_workers))
    for rank, found in enumerate(run_workers(work, num_workers)):
        # Not equality: the mean of gradients and the gradient of the mean add in another order.
        distance = float((found - expected).abs().max())
        if not distance < ROUNDING:
            raise BrokenError(
                f"with {settings} worker {rank} of {num_workers} is {distance:.2g} from "
                f"{type(reference).__name__} after {NUM_STEPS} steps"
            )


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
        with naming(name):
            if method.family != "neighbours":
                check_same(after[1].flatten(), before[1].flatten(), key)
                continue
            # What neighbours send of it differs where they choose by what is trained beside it.
            # Mixing then moves it apart, and keeps its mean.
            if not torch.allclose(after.mean(0), before[0]):
                raise BrokenError(f"{key}: its mean over workers moves")
