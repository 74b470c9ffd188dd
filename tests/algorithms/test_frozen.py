"""A parameter that is frozen in mid-run: nothing but averages of itself may move it, and it can be
thawed later."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cser_bench.algorithms import (
    BlockSparsifier,
    Collectives,
    DistributedOptimizer,
    QSparseLocalSGD,
    TopK,
    algorithms,
)
from tests.algorithms.problems import (
    ADAMW,
    COMPRESSORS,
    NAMES,
    Types,
    assert_expected_traffic,
    batch_loss,
    make_model,
    make_optimizer,
    own_settings,
    switches,
    train,
    workers,
)
from tests.algorithms.test_contract import RUNS

SENDING_CHANGES = {"qsparse_local_sgd", "sparse_loco", "streaming_diloco"}
"""Methods that send what moved since the last exchange, of which a frozen parameter has nothing."""
AVERAGING = {
    name
    for name, algorithm in algorithms().items()
    if algorithm.averages_models and algorithm.workers_differ
} - SENDING_CHANGES
"""Methods that average parameters, and so one that is frozen too, where workers differ in it."""
FROZEN_COORDINATES = slice(24, 48)
INTERVAL = 4
NUM_WORKERS = 3
BEFORE = range(1, 7)
FROZEN = range(7, 17)
AFTER = range(17, 22)
"""Steps of a run; the freeze comes between two synchronisations, and lasts over two more."""
Run = tuple[str, str, dict[str, Any], dict[str, Any], Types]


def runs() -> Iterator[Run]:
    """Those of the contract, each switch alone, outer steps without momentum, and AdamW where
    errors are fed back."""
    # It trains nothing
    yield from (run for run in RUNS if run[:2] != ("ef_sgd", "zero"))
    for name in NAMES:
        for switch in switches(name):
            yield name, "blocks", {switch: True}, {}, torch.float64
    for name in ("ef_sgd", "qsparse_local_sgd", "sparse_loco", "cser"):
        for common in ({"communication_dtype": torch.bfloat16}, {"momentum": 0.0}):
            yield name, "blocks", {}, common, torch.float32
        yield name, "top_k", {}, ADAMW, torch.float64
    for name in ("diloco", "streaming_diloco", "noloco"):
        yield (
            name,
            "identity",
            {"outer_momentum": 0.9, "outer_lr": 0.4},
            {},
            torch.float64,
        )
        yield name, "identity", {"outer_momentum": 0.0}, {}, torch.float64
        yield (
            name,
            "identity",
            {},
            {"communication_dtype": torch.bfloat16},
            torch.float32,
        )
    yield "streaming_diloco", "identity", {"delay": 0, "merge": 0.0}, {}, torch.float64
    yield (
        "streaming_diloco",
        "identity",
        {"delay": 3, "merge": 0.0, "bits": 8},
        {},
        torch.float64,
    )


CASES = list(runs())


def parts(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The parameters that are frozen, which are neighbours in the flat vector though of two groups,
    and the others."""
    first_weight, first_bias, last_weight, last_bias = model.parameters()
    return [last_weight, first_bias], [first_weight, last_bias]


def freeze(model: nn.Module, is_frozen: bool = True) -> None:
    for parameter in parts(model)[0]:
        parameter.requires_grad_(not is_frozen)


def one_step(
    optimizer: DistributedOptimizer, model: nn.Module, rank: int, step: int
) -> None:
    optimizer.zero_grad()
    batch_loss(model, step, rank).backward()  # type: ignore[no-untyped-call]
    for parameter in parts(model)[0]:
        if not parameter.requires_grad:
            parameter.grad = None
    optimizer.step()


def values(tensors: Sequence[Tensor]) -> Tensor:
    flat = [each.detach().double().flatten() for each in tensors]
    return torch.cat(flat)


def held(optimizer: DistributedOptimizer, model: nn.Module) -> dict[str, Tensor]:
    """What the optimiser holds for the frozen tensors beside the parameters, by name."""
    found: dict[str, list[Tensor]] = {}
    for each in optimizer.replicas:
        for tensor, window in zip(
            each.flat.tensors, each.flat.layout.tensors, strict=True
        ):
            frozen_parts, *_ = parts(model)
            if any(tensor is frozen for frozen in frozen_parts):
                for key, buffer in each.buffers.items():
                    own = window.view(buffer).clone()
                    found.setdefault(key, []).append(own)
    return {key: values(parts) for key, parts in found.items()}


def stays(name: str, key: str) -> bool:
    """Whether a part of the state is as it was when the parameter is thawed; others follow from
    what was averaged."""
    if key in ("momentum", "exp_avg", "exp_avg_sq", "outer_momentum", "decay_momentum"):
        return True
    if key == "master":
        return False  # it follows the parameter
    if name == "streaming_diloco":
        return key == "anchor"  # "delayed" and "error" are about messages
    keeps_an_anchor = name in ("diloco", "noloco") and key == "anchor"
    return name not in AVERAGING or keeps_an_anchor


@pytest.mark.whole
@pytest.mark.parametrize(
    ("name", "key", "more", "common", "dtype"),
    CASES,
    ids=[f"{number}-{run[0]}" for number, run in enumerate(CASES)],
)
def test_nothing_but_averages_of_itself_moves_a_frozen_parameter(
    name: str, key: str, more: Any, common: Any, dtype: Types
) -> None:
    """Its gradient is None by then, errors are not sent yet, and momenta are warm; the others go on
    being trained."""
    own = own_settings(name, [COMPRESSORS[key]], INTERVAL) | more

    def work(collectives: Collectives) -> tuple[list[Tensor], list[Tensor], bool]:
        model = make_model(dtype)
        rank = collectives.rank
        optimizer = make_optimizer(name, model, own, collectives, **common)
        train(optimizer, model, rank, BEFORE)
        frozen, trained = parts(model)
        seen = [values(frozen)]
        others = [values(trained)]
        before = held(optimizer, model)
        freeze(model)
        for step in FROZEN:
            one_step(optimizer, model, rank, step)
            seen.append(values(frozen))
            others.append(values(trained))
        after = held(optimizer, model)
        kept = {part for part in before if stays(name, part)}
        changed = [part for part in kept if not torch.equal(before[part], after[part])]
        assert not changed, changed
        freeze(model, False)
        train(optimizer, model, rank, AFTER)
        assert_expected_traffic(optimizer, AFTER[-1])
        at_the_end = values(frozen)
        is_same = torch.equal(at_the_end, seen[-1])
        return seen, others, is_same

    types = dtype if isinstance(dtype, tuple) else (dtype,)
    tolerance = max(
        {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 0.03}[each]
        for each in types
    )
    everyones = workers(work, NUM_WORKERS)
    for seen, others, is_still_frozen in everyones:
        assert not is_still_frozen
        first, *_, last = others
        assert not torch.equal(first, last)
        if name not in AVERAGING:
            for each in seen[1:]:
                assert torch.equal(seen[0], each)
    means = [
        torch.stack(rows).mean(0)
        for rows in zip(*(seen for seen, *_ in everyones), strict=True)
    ]
    for mean in means[1:]:
        torch.testing.assert_close(mean, means[0], rtol=0, atol=tolerance)


def test_workers_that_freeze_other_parameters_are_told_so() -> None:
    """While they train, and when optimisers are made."""

    def train_on(collectives: Collectives, frozen_on: set[int]) -> None:
        model = make_model()
        optimizer = make_optimizer("mcser", model, own_settings("mcser"), collectives)
        train(optimizer, model, collectives.rank, [1])
        freeze(model, collectives.rank in frozen_on)
        train(optimizer, model, collectives.rank, range(2, 10))

    workers(lambda collectives: train_on(collectives, {0, 1, 2}), 3)
    with pytest.raises(
        ValueError, match=r"frozen parameters = \[\[1, 2\]\] on rank 1[;)].*thaw"
    ):
        workers(lambda collectives: train_on(collectives, {1}), 3)

    def work(collectives: Collectives) -> None:
        model = make_model()
        freeze(model, collectives.rank == 1)
        with pytest.raises(
            ValueError,
            match=r"\(frozen parameters = \[\] on rank 0; frozen .* \[1, 2\] on rank 1\)",
        ):
            make_optimizer("mcser", model, own_settings("mcser"), collectives)

    with pytest.warns(UserWarning, match="does not require a gradient"):
        workers(work, 2)


@pytest.mark.parametrize(
    "name", ["ef_sgd", "qsparse_local_sgd", "sparse_loco", "ef21_sgdm"]
)
def test_what_is_unsent_of_a_frozen_parameter_takes_no_place_in_a_message(
    name: str,
) -> None:
    """However large it is: top-k chooses among the others."""
    model = make_model()
    optimizer = make_optimizer(
        name, model, own_settings(name, [TopK(10)], 1), momentum=0.0
    )
    train(optimizer, model, 0, [1, 2])
    others = parts(model)[1]
    buffers = optimizer.replicas[0].buffers
    held_back = buffers.get("error", buffers.get("estimate"))
    assert held_back is not None
    held_back[:, FROZEN_COORDINATES] = 1e6
    freeze(model)
    before = values(others)
    train(optimizer, model, 0, [3])
    assert (values(others) != before).sum() >= 5
    assert (held_back[:, FROZEN_COORDINATES] == 1e6).all()


def test_a_message_that_was_sent_before_a_freeze_is_dropped_and_one_that_comes_after_it_arrives() -> (
    None
):
    """Streaming DiLoCo sends after step 4 what arrives after step 6; here each average takes the
    model's place."""
    own = {
        "sync_interval": 4,
        "delay": 2,
        "merge": 0.0,
        "outer_lr": 1.0,
        "outer_momentum": 0.0,
    }

    def work(collectives: Collectives, frozen_at: set[int]) -> list[Tensor]:
        model = make_model()
        rank = collectives.rank
        optimizer = make_optimizer("streaming_diloco", model, own, collectives)
        seen = [torch.empty(0)]
        for step in range(1, 11):
            freeze(model, step in frozen_at)
            train(optimizer, model, rank, [step])
            seen.append(values(parts(model)[0]))
        return seen

    def mean(runs: list[list[Tensor]], step: int) -> Tensor:
        at_step = [seen[step] for seen in runs]
        return torch.stack(at_step).mean(0)

    late = workers(lambda collectives: work(collectives, {4, 5}), 3)
    for seen in late:
        assert torch.equal(seen[3], seen[5])
        expected = mean(late, 3)
        torch.testing.assert_close(seen[6], expected, rtol=0, atol=1e-12)
    during = workers(lambda collectives: work(collectives, {6, 7}), 3)
    for seen in during:
        assert torch.equal(seen[5], seen[7])
        assert not torch.equal(seen[7], seen[8])
        expected = mean(during, 8)
        torch.testing.assert_close(seen[10], expected, rtol=0, atol=1e-12)


def test_a_master_copy_goes_on_from_what_a_parameter_was_when_it_was_frozen() -> None:
    """Gradients are 1 and so is the rate: six steps, a freeze over two synchronisations, and one
    step more are -7."""
    parameter = nn.Parameter(torch.zeros(8))
    optimizer = QSparseLocalSGD(
        [parameter],
        lr=1.0,
        momentum=0.0,
        compressor=BlockSparsifier(ratio=1),
        sync_interval=4,
        keep_master=True,
    )
    for step in range(1, 14):
        parameter.requires_grad_(not 7 <= step <= 12)
        parameter.grad = torch.ones(8) if parameter.requires_grad else None
        optimizer.step()
        assert parameter.eq(-step if step <= 6 else -6 if step <= 12 else -7).all(), (
            step
        )
