"""What each method's state is: which parts, whose they are, how large, and how they begin; the
page's table says it."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn

from cser_bench.algorithms import (
    BlockSparsifier,
    Collectives,
    DistributedOptimizer,
    LocalSGD,
    TopK,
    consensus_checkpoint,
    load_checkpoint,
)
from cser_bench.algorithms.core.layout import Layout
from cser_bench.algorithms.core.low_rank import LowRank
from cser_bench.algorithms.core.state import OTHER_TYPES, common_state
from tests.algorithms.problems import (
    ACCURATE,
    ADAMW,
    NAMES,
    NUM_PARAMETERS,
    make_model,
    make_optimizer,
    ordered,
    own_settings,
    stacked,
    takes,
    train,
    workers,
)

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "in-your-own-script.md").read_text()
WORLD_SIZE = 4
INTERVAL = 3
NUM_STEPS = 8
"""Steps that end between two synchronisations."""
FACTORS = LowRank(
    Layout.of([each.detach() for each in ordered(make_model())]), 1
).second_numel
"""Numbers of PowerSGD's Q."""
State = dict[str, Tensor]


def begun_and_trained(name: str) -> tuple[list[State], list[State]]:
    """Each worker's state when it is made, and after some steps."""
    top_k = TopK(10)
    compressor = top_k if takes(name, top_k) else BlockSparsifier(4)

    def held(optimizer: DistributedOptimizer) -> State:
        flat = optimizer.state_dict()["param_groups"][0]["flat"] | {
            "parameters": optimizer.flat.parameters
        }
        return {
            key: value.clone()
            for key, value in flat.items()
            if isinstance(value, Tensor)
        }

    def work(collectives: Collectives) -> tuple[State, State]:
        model = make_model(seed=collectives.rank)
        optimizer = make_optimizer(
            name, model, own_settings(name, [compressor], INTERVAL), collectives
        )
        begun = held(optimizer)
        steps = range(1, NUM_STEPS + 1)
        train(optimizer, model, collectives.rank, steps)
        return begun, held(optimizer)

    begun, trained = zip(*workers(work, WORLD_SIZE), strict=True)
    return list(begun), list(trained)


def is_common(states: list[State], part: str) -> bool:
    first = states[0][part]
    return all(torch.equal(each[part], first) for each in states)


def beginning(begun: list[State], part: str) -> str:
    if not any(each[part].any() for each in begun):
        return "0"
    assert is_common(begun, part)
    return (
        "worker 0's parameters"
        if begun[0][part].equal(begun[0]["parameters"])
        else "drawn from the seed"
    )


def line(name: str) -> str:
    """The page's words on a method, where a part is each worker's own, of size d and 0 at first
    unless it says so."""
    begun, trained = begun_and_trained(name)
    parts = [part for part in trained[0] if part != "parameters"]
    whole = [part for part in parts if trained[0][part].numel() == NUM_PARAMETERS]
    cells = []
    for part in parts:
        assert part in whole or trained[0][part].numel() == FACTORS
        facts = ["common"] * is_common(trained, part) + ["Σ r columns"] * (
            part not in whole
        )
        facts += [fact for fact in [beginning(begun, part)] if fact != "0"]
        cells.append(
            part.replace("_", " ") + (f" ({', '.join(facts)})" if facts else "")
        )
    return (
        f"{' (agree)' if is_common(trained, 'parameters') else ''}: {', '.join(cells)}."
    )


@pytest.mark.parametrize("name", ["mcser", "ef_sgd"])
def test_stacked_workers_go_on_from_a_checkpoint(name: str, tmp_path: Path) -> None:
    """Its model is one worker's, the average."""
    first, other = (
        stacked(name, own_settings(name), 3, num_steps)[0]
        for num_steps in (NUM_STEPS, 2)
    )
    consensus_checkpoint(
        tmp_path / "step-8", nn.ParameterList(first.flat.tensors), first, step=8
    )
    assert load_checkpoint(
        tmp_path / "step-8", nn.ParameterList(other.flat.tensors), other
    ) == {"step": 8}
    saved, held = (
        each.state_dict()["param_groups"][0]["flat"] for each in (first, other)
    )
    expected = first.flat.parameters
    assert torch.equal(other.flat.parameters, expected)
    assert saved.keys() == held.keys()
    assert all(
        torch.equal(*pair)
        for pair in zip(saved.values(), held.values(), strict=True)
        if type(pair[0]) is Tensor
    )
    average = {
        "model": nn.ParameterList(
            each[0].detach() for each in first.flat.tensors
        ).state_dict()
    }
    dcp.load(average, checkpoint_id=tmp_path / "step-8", no_dist=True)
    averages = average["model"].values()
    for rows, one in zip(first.flat.tensors, averages, strict=True):
        torch.testing.assert_close(one, rows.mean(0))


def test_a_state_for_any_number_of_workers_has_the_averages_of_parameters_of_each_type() -> (
    None
):
    own = own_settings("mcser", [TopK(10)], 3)

    def work(collectives: Collectives) -> Any:
        model = make_model(ACCURATE)
        optimizer = make_optimizer("mcser", model, own, collectives, **ADAMW)
        for step in range(1, 6):
            model[0].bias.requires_grad_(step > 2)  # type: ignore[union-attr]
            train(optimizer, model, collectives.rank, [step])
        assert optimizer.error is not None
        assert optimizer.error.shape == (1, NUM_PARAMETERS)
        return copy.deepcopy(optimizer.state_dict())

    states = workers(work, 2)
    common = common_state(copy.deepcopy(states))
    model = make_model(ACCURATE, 3)
    optimizer = make_optimizer("mcser", model, own, **ADAMW)
    optimizer.load_state_dict(copy.deepcopy(common))
    flats = [
        state["param_groups"][0]["flat"] for state in (*states, optimizer.state_dict())
    ]
    for first, second, mean in (
        flats,
        [flat[OTHER_TYPES]["torch.float64"] for flat in flats],
    ):
        assert (
            mean["tensor_steps"]
            == first["tensor_steps"]
            == ([5, 3] if first is flats[0] else [5, 5])
        )
        for key in ("error", "exp_avg", "exp_avg_sq"):
            expected = (first[key] + second[key]) / 2
            torch.testing.assert_close(mean[key], expected)
            assert mean[key].any()


def test_states_of_another_local_step_or_from_before_a_method_had_a_setting() -> None:
    """What a state does not know was at its default."""

    def make(on: str = "updates", **common: Any) -> DistributedOptimizer:
        return make_optimizer(
            "ef_sgd",
            make_model(),
            {"compressor": TopK(10), "error_feedback_on": on},
            **common,
        )

    with pytest.raises(
        ValueError, match="saved with local_step = None, this has 'adamw'"
    ):
        make(**ADAMW).load_state_dict(make().state_dict())
    state = make().state_dict()
    del state["param_groups"][0]["flat"]["settings"]["error_feedback_on"]
    make().load_state_dict(copy.deepcopy(state))
    with pytest.raises(
        ValueError,
        match="saved with error_feedback_on = 'updates', this has 'gradients'",
    ):
        make("gradients").load_state_dict(state)


def test_the_page_says_what_the_state_of_each_method_is() -> None:
    methods: dict[str, list[str]] = {}
    for name in NAMES:
        of_method = f"`{name}`"
        methods.setdefault(line(name), []).append(of_method)
    lines = [f"- {', '.join(names)}{rest}" for rest, names in methods.items()]
    said = re.findall(r"^- `.*", PAGE, flags=re.MULTILINE)
    assert said == lines, "\n".join(lines)


def compiled(model: nn.Module) -> nn.Module:
    """All of it and, once more, a layer in it; nothing is compiled before it is called."""
    model[0] = torch.compile(model[0])  # type: ignore[operator]
    return torch.compile(model)  # type: ignore[return-value]


@pytest.mark.whole
@pytest.mark.parametrize("compiled_before", [False, True])
def test_a_checkpoint_fits_the_model_compiled_or_not(
    compiled_before: bool, tmp_path: Path
) -> None:
    def make(seed: int) -> tuple[nn.Module, DistributedOptimizer]:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
        optimizer = LocalSGD(model.parameters(), lr=0.1, sync_interval=2)
        return model, optimizer

    model, optimizer = make(1)
    outputs = model(torch.randn(5, 4))
    outputs.square().sum().backward()
    optimizer.step()
    tensors = list(model.state_dict().values())
    before = copy.deepcopy(tensors)
    saved = compiled(model) if compiled_before else model
    consensus_checkpoint(tmp_path / "step-1", saved, optimizer)
    for going_on in (True, False):
        again, other = make(2)
        loaded = again if compiled_before else compiled(again)
        load_checkpoint(tmp_path / "step-1", loaded, other if going_on else None)
        after = again.state_dict().values()
        assert all(map(torch.equal, after, before))
        assert other.num_steps == going_on
