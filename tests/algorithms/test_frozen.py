"""A parameter that is frozen in mid-run: nothing but averages of itself may move it, and it can be thawed later."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cser_bench.algorithms import CollectiveError, Collectives, DistributedOptimizer, TopK, algorithms
from tests.algorithms.problems import (
    ADAMW,
    COMPRESSORS,
    NAMES,
    TAKING_ADAMW,
    Types,
    batch_loss,
    make_model,
    make_optimizer,
    own_settings,
    switches,
    train,
    workers,
)
from tests.algorithms.test_contract import RUNS

AVERAGING = {
    *("csea", "cser", "cser_pl", "cser_released", "mcser", "mcser_released", "local_sgd", "qsr", "diloco"),
    *("choco_sgd", "deep_squeeze", "dpsgd", "noloco"),
}
"""Methods that average parameters, and so one that is frozen too, where workers differ in it."""
INTERVAL, NUM_WORKERS = 4, 4
BEFORE, FROZEN, AFTER = range(1, 7), range(7, 17), range(17, 22)
"""Steps of a run; the freeze comes between two synchronisations, and lasts over two more."""
Run = tuple[str, str, dict[str, Any], dict[str, Any], Types]


def runs() -> Iterator[Run]:
    """Those of the contract, each switch alone, outer steps without momentum, and AdamW where errors are fed back."""
    yield from RUNS
    for name in NAMES:
        for switch in switches(name):
            yield name, "blocks", {switch: True}, {}, torch.float64
    for name in ("ef_sgd", "qsparse_local_sgd", "sparse_loco", "cser"):
        for common in ({"communication_dtype": torch.bfloat16}, {"momentum": 0.0}):
            yield name, "blocks", {}, common, torch.float32
        yield name, "top_k", {}, ADAMW, torch.float64
    for name in ("diloco", "streaming_diloco", "noloco"):
        yield name, "identity", {"outer_momentum": 0.9, "outer_lr": 0.4}, {}, torch.float64
        yield name, "identity", {"outer_momentum": 0.0}, {}, torch.float64
        yield name, "identity", {}, {"communication_dtype": torch.bfloat16}, torch.float32
    yield "streaming_diloco", "identity", {"delay": 0, "merge": 0.0}, {}, torch.float64
    yield "streaming_diloco", "identity", {"delay": 3, "merge": 0.0, "bits": 8}, {}, torch.float64


CASES = list(runs())


def frozen_parts(model: nn.Module) -> list[nn.Parameter]:
    """Tensors of two groups that are frozen: neither is the first of its group, or the last, in both."""
    return [model[0].weight, model[2].bias]  # type: ignore[index, list-item, union-attr]


def one_step(optimizer: DistributedOptimizer, model: nn.Module, rank: int, step: int) -> None:
    optimizer.zero_grad()
    batch_loss(model, step, rank).backward()
    for parameter in frozen_parts(model):
        if not parameter.requires_grad:
            parameter.grad = None
    optimizer.step()


def values(tensors: list[Tensor]) -> Tensor:
    return torch.cat([each.detach().double().flatten() for each in tensors])


def held(optimizer: DistributedOptimizer, model: nn.Module) -> dict[str, Tensor]:
    """What the optimiser holds for the frozen tensors beside the parameters, by name."""
    found: dict[str, list[Tensor]] = {}
    for each in optimizer._of_each_type:
        for tensor, window in zip(each.flat.tensors, each.flat.layout.tensors, strict=True):
            if any(tensor is frozen for frozen in frozen_parts(model)):
                for key, buffer in each._buffers.items():
                    found.setdefault(key, []).append(window.view(buffer).clone())
    return {key: values(parts) for key, parts in found.items()}


def stays(name: str, key: str) -> bool:
    """Whether a part of the state is as it was when the parameter is thawed; others follow from what was averaged."""
    if key in ("momentum", "exp_avg", "exp_avg_sq", "outer_momentum", "decay_momentum"):
        return True
    if name == "streaming_diloco":
        return key == "anchor"  # "delayed" and "error" are about messages
    return name not in AVERAGING or (name in ("diloco", "noloco") and key == "anchor")


@pytest.mark.parametrize(
    ("name", "key", "more", "common", "dtype"), CASES, ids=[f"{number}-{run[0]}" for number, run in enumerate(CASES)]
)
def test_nothing_but_averages_of_itself_moves_a_frozen_parameter(
    name: str, key: str, more: Any, common: Any, dtype: Types
) -> None:
    """Its gradient is None by then, errors are not sent yet, and momenta are warm; the others go on being trained."""
    own = own_settings(name, [COMPRESSORS[key]], INTERVAL) | more

    def work(collectives: Collectives) -> tuple[list[Tensor], list[Tensor], bool]:
        model, rank = make_model(dtype), collectives.rank
        optimizer = make_optimizer(name, model, own, collectives, **common)
        train(optimizer, model, rank, BEFORE)
        frozen, trained = frozen_parts(model), [model[0].bias, model[2].weight]
        seen, others = [values(frozen)], [values(trained)]
        before = held(optimizer, model)
        for parameter in frozen:
            parameter.requires_grad_(False)
        for step in FROZEN:
            one_step(optimizer, model, rank, step)
            seen.append(values(frozen))
            others.append(values(trained))
        after = held(optimizer, model)
        kept = {part for part in before if stays(name, part)}
        changed = [part for part in kept if not torch.equal(before[part], after[part])]
        assert not changed, changed
        for parameter in frozen:
            parameter.requires_grad_(True)
        train(optimizer, model, rank, AFTER)
        assert optimizer.traffic.training() == optimizer.expected_traffic(AFTER[-1]).training()
        return seen, others, torch.equal(values(frozen), seen[-1])

    types = dtype if isinstance(dtype, tuple) else (dtype,)
    tolerance = max({torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 0.03}[each] for each in types)
    everyones = workers(work, NUM_WORKERS)
    for seen, others, is_still_frozen in everyones:
        assert not is_still_frozen
        assert not torch.equal(others[0], others[-1])
        if name not in AVERAGING:
            assert all(torch.equal(seen[0], each) for each in seen[1:])
    means = [torch.stack(rows).mean(0) for rows in zip(*(seen for seen, *_ in everyones), strict=True)]
    for mean in means[1:]:
        torch.testing.assert_close(mean, means[0], rtol=0, atol=tolerance)
