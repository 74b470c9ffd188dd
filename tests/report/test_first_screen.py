"""README's tables and picture: each line is one setting, what it needs follows by hand, and README has
what the records say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from cser_bench.algorithms import DistributedOptimizer, QSparseLocalSGD, SoloCollectives
from cser_bench.algorithms.registry import methods
from cser_bench.harness.errors import UsageError
from cser_bench.report.answers.net import Net
from cser_bench.report.collection import collection_of
from cser_bench.report.first_screen import FIGURE, table_text, with_table
from cser_bench.report.first_table import (
    MethodInTable,
    Table,
    emulated_needs,
    measured_row,
    names_by_key,
    need_of,
    panels,
    table_frame,
    tables,
    timed_as,
)
from cser_bench.report.setting import setting_in_short

ROOT = Path(__file__).parents[2]
AGAIN = "python -m harness answers --readme README.md"
LINES = [(table, line) for table in tables() for line in table.rows]


def name_of(value: object) -> str:
    if isinstance(value, MethodInTable):
        return value.label
    return getattr(value, "name", "")


@pytest.mark.parametrize(("table", "line"), LINES, ids=name_of)
def test_a_line_is_one_setting_of_the_class_that_one_types(
    table: Table, line: MethodInTable
) -> None:
    rows = [measured_row(run).row for run in (*line.runs, line.setting_of) if run]
    assert len({setting_in_short(row) for row in rows}) == 1, (
        "its cells would mix two settings"
    )
    if line.type:
        assert line.type in {methods()[row.algorithm].__name__ for row in rows}


@pytest.mark.parametrize("table", tables(), ids=name_of)
def test_no_cell_is_empty_and_the_floor_communicates_nothing(table: Table) -> None:
    frame = table_frame(table).set_index("method")
    assert (frame.map(len) > 0).all().all()
    assert frame.loc["no communication", "traffic"] == "0"


def test_what_a_step_needs_by_hand() -> None:
    """ResNet-50: a model of 102.4 MB, 27 ms of passes, a ring of eight at 10 Gb/s, 0.05 ms a hop."""
    frame = table_frame(tables()[0]).set_index("method")
    model = 25.6e6 * 4
    hops = 14 * 50e-6
    travel = 2 * 7 / 8 * model * 8 / 10e9
    local = 27e-3 + (hops + travel) / 24
    # The hook's five buckets travel one after the other, once a third of the passes, the forward
    # pass, and a fifth of the backward pass are over.
    hook = 9e-3 + 18e-3 / 5 + 5 * hops + travel / 2
    # Without encoding, which local SGD has none of; the hook's moves 12 bytes a parameter.
    hook_encoded = hook + 12 * 25.6e6 / 900e9
    needs = float(frame.loc["local SGD", "needs at 10 Gb/s"])
    assert needs == pytest.approx(local / hook_encoded, abs=0.006)
    assert (
        frame.loc["no communication", "needs at 10 Gb/s"]
        < frame.loc["EF top-k", "needs at 10 Gb/s"]
    )


def test_advice_has_the_names_of_the_tables() -> None:
    assert set(names_by_key("residual").values()) <= {
        line.label for line in tables()[0].rows
    }
    assert names_by_key("perceptron") == {}


@pytest.mark.parametrize("table", tables(), ids=name_of)
def test_pages_have_the_tables_of_the_records(table: Table) -> None:
    page = (ROOT / (table.page or "README.md")).read_text()
    assert with_table(page, table, table.page) == page, f"run {AGAIN}"


def test_a_page_without_the_marks_is_refused() -> None:
    with pytest.raises(UsageError, match="has no lines <!-- begin: images -->"):
        with_table("nothing of the kind", tables()[0], "page.md")


def test_a_table_goes_between_its_marks_alone() -> None:
    table = tables()[0]
    page = "a\n<!-- begin: images -->\nold\n<!-- end: images -->\nb\n"
    written = with_table(page, table, "page.md")
    assert written == page.replace("old", table_text(table))


def test_the_picture_is_shown_and_draws_runs_that_ship() -> None:
    assert f"]({FIGURE})" in (ROOT / "README.md").read_text()
    assert (ROOT / FIGURE).is_file()
    for panel in panels():
        for runs in panel.lines.values():
            shares = [measured_row(run).traffic for run in runs]
            assert shares == sorted(shares, reverse=True), (
                "a line goes from much to little traffic"
            )


# The findings, which a person wrote


def findings() -> str:
    readme = (ROOT / "README.md").read_text()
    section = readme.partition("## What we found")[2].partition("<!-- begin")[0]
    return " ".join(section.split())


def first(cell: str) -> float:
    """Return the number before an interval."""
    return float(cell.split()[0])


def margins(methods: list[str], link: str = "10 Gb/s") -> list[float]:
    """Return how many times the efficiency that they need methods have, on both networks."""
    frame = table_frame(tables()[0]).set_index("method").loc[methods]
    needs = frame[f"needs at {link}"].astype(float)
    found = [
        frame[network].map(first) / needs
        for network in ("small CNN", "residual network")
    ]
    return [float(margin) for each in found for margin in each]


def test_the_findings_on_images_are_those_of_the_table() -> None:
    best = margins(["EF 4-bit", "EF top-k"])
    assert (
        f"they have {min(best):.1f} to {max(best):.1f} times what they need"
        in findings()
    )
    slow = margins(["EF 4-bit", "EF top-k"], "1 Gb/s")
    assert f"have {min(slow):.1f} to {max(slow):.1f} times what" in findings()
    hook = table_frame(tables()[0]).set_index("method").loc["DDP + 4-bit hook"]
    bounds = [
        float(hook[network].removeprefix("at least "))
        for network in ("small CNN", "residual network")
    ]
    least = min(bounds) / float(hook["needs at 10 Gb/s"])
    assert f"keeps DDP and has at least {least:.1f} times" in findings()
    next_best = margins(["M-CSER 4-bit"])
    assert (
        f"M-CSER with 4 bits has {min(next_best):.1f} to {max(next_best):.1f} times"
        in findings()
    )
    low_rank = margins(["DDP + PowerSGD hook"])[0]
    assert f"PowerSGD hook {low_rank:.1f} times on the small CNN" in findings()
    # It sends half as much on the residual network as on the small CNN, and so needs less.
    on_residual = measured_row("resnet_regime/powersgd")
    assert 1 / on_residual.traffic == pytest.approx(30, abs=0.5)
    has_most = on_residual.estimate / need_of(on_residual, 10e9)
    assert f"and {has_most:.1f} on the residual network, at 1/30" in findings()
    assert (
        max(margins(["DiLoCo", "local SGD", "M-CSER blocks"]))
        < min(next_best)
        <= min(best)
    )
    frame = table_frame(tables()[0]).set_index("method")
    blocks = frame.loc["M-CSER blocks"]
    has = [first(blocks[network]) for network in ("small CNN", "residual network")]
    needs = float(blocks["needs at 10 Gb/s"])
    assert f"its blocks have {has[0]} and {has[1]} and need {needs}" in findings()
    assert float(blocks["needs at 1 Gb/s"]) < min(has) <= max(has) < needs
    of_cnn = frame["small CNN"]
    outer = (
        f"has {first(of_cnn['DiLoCo']):.2f} on the small CNN with its outer step tuned"
    )
    assert f"{outer}, local SGD {first(of_cnn['local SGD']):.2f}" in findings()


def test_at_25_gbits_no_method_has_clearly_more_than_was_emulated() -> None:
    needs = emulated_needs()
    fast = needs[
        (needs["bits_per_second"] == 2.5e10)
        & ~needs["method"].isin(["ddp", "ddp_fp16"])
    ]
    least = fast["needed_fp16_encoded"].min()
    most = fast["needed_fp16_encoded"].max()
    assert f"at 25 Gb/s need {least:.2f} to {most:.2f}" in findings()
    frame = table_frame(tables()[0]).set_index("method")
    for network in ("small CNN", "residual network"):
        lows = [
            float(cell.partition("(")[2].partition(" to ")[0])
            for cell in frame[network][2:-1]
            if "(" in cell
        ]
        assert len(lows) == len(frame) - 4, "all but DDP, the hooks and the bound"
        assert max(lows) < least, "no interval lies above"
    hooks = ("study_cnn_hooks", "study_resnet_hooks")
    bounds = []
    for name in hooks:
        hook = measured_row(f"{name}/ef_4bit_gradients-1")
        kind, _, bound = hook.efficiency.rpartition(" ")
        assert kind == "at least"
        bounds.append(float(bound) > need_of(hook, 25e9))
    assert not all(bounds), "no bound lies above on both networks"
    assert "no method has clearly more on both networks" in findings()


TIMED = [
    line
    for line in tables()[0].rows
    if line.label not in ("DDP + PowerSGD hook", "DDP + 4-bit hook", "no communication")
]


@pytest.mark.parametrize("line", TIMED, ids=lambda line: line.label)
def test_each_line_on_images_is_scored_and_timed_at_one_setting(
    line: MethodInTable,
) -> None:
    scored = measured_row(line.runs[0]).row
    timed = timed_as(scored)
    assert timed is not None, "what it needs is emulated"
    assert timed.settings == scored.settings
    assert line.runs[0] in timed.rows


def test_powersgd_has_the_need_of_what_it_sent_and_not_of_its_rank_on_resnet_50() -> (
    None
):
    sent = measured_row("table_cnn/powersgd")
    assert timed_as(sent.row) is None
    frame = table_frame(tables()[0]).set_index("method")
    # It sends 1.5 times as much as EF top-k does, all in one step.
    assert sent.traffic == pytest.approx(1 / 16, rel=0.01)
    needs = frame["needs at 1 Gb/s"].astype(float)
    assert needs["DDP + PowerSGD hook"] == pytest.approx(
        1.5 * needs["EF top-k"], rel=0.3
    )


def test_the_findings_on_text_are_those_of_the_table() -> None:
    frame = table_frame(tables()[1]).set_index("method")
    has = frame["GPT"]
    needs = frame.loc["DDP + 4-bit hook", "needs at 10 Gb/s"]
    best = f"4-bit hook, which has {first(has['DDP + 4-bit hook']):.2f}"
    assert f"keep DDP and use the {best} and needs {needs}." in findings()
    slow = [
        first(has[name]) / float(frame.loc[name, "needs at 1 Gb/s"])
        for name in ("EF 4-bit", "DDP + 4-bit hook", "EF top-k")
    ]
    assert f"which have {slow[0]:.1f} to {slow[1]:.1f} times" in findings()
    assert slow[2] < min(slow[:2]), "and not top-k"
    names = {
        "The optimiser with 4 bits has": "EF 4-bit",
        "CSER with 4 bits": "CSER 4-bit",
        "PyTorch's PowerSGD hook": "DDP + PowerSGD hook",
        "local AdamW": "local AdamW",
        "top-k": "EF top-k",
    }
    others = [f"{words} {first(has[name]):.2f}" for words, name in names.items()]
    assert f"{', '.join(others)}." in findings()


def test_predictions_of_efficiencies_lie_in_what_was_measured() -> None:
    frame = table_frame(tables()[1]).set_index("method")
    predicted = frame.loc[frame["predicted"] != "–"]
    assert len(predicted) == 3
    for _, line in predicted.iterrows():
        low, high = re.findall(r"[\d.]+", line["GPT"])[1:]
        # The dictionary's mean, held to the interval on the other text
        assert float(low) <= first(line["predicted"]) <= float(high)


def test_the_hook_on_text_has_more_than_it_needs_at_25_gbits() -> None:
    hook = measured_row("study_gpt_text_hooks/ef_4bit_gradients-1")
    needs = need_of(hook, 25e9)
    assert f"hook for DDP has {hook.efficiency} and needs {needs:.2f}" in findings()
    assert hook.low > needs


def test_speedups_on_one_network_are_those_of_the_records() -> None:
    queries = Net(collection_of(None))
    four_bits = queries.net("qsparse_4-8", form="short")
    assert f"It reaches its loss {four_bits} times as soon as DDP in fp32" in findings()
    local = queries.net("local-64", form="short")
    blocks = queries.net("cser-64", form="short")
    assert f"local AdamW {local} times, CSER blocks {blocks} times" in findings()
    in_16_bits = queries.net_table("qsparse_4-8").splitlines()[-1].split(" | ")[-1]
    assert f"DDP in 16 bits it is {first(in_16_bits)} times by a model" in findings()
    sent = measured_row("gpt_text_methods/qsparse_4-8")
    assert 1 / sent.traffic == pytest.approx(60, abs=0.5)
    assert sent.row.settings["sync_interval"] == 8
    assert f"ends {first(sent.drop):.3f} nats above DDP" in findings()


def test_ten_times_is_out_of_reach_of_a_step_that_sends_nothing() -> None:
    frame = (
        table_frame(tables()[0]).set_index("method")["needs at 10 Gb/s"].astype(float)
    )
    most = frame["DDP (fp32)"] / frame["no communication"]
    assert (
        f"a step that sends nothing is {most:.1f} times as fast as DDP's in fp32"
        in findings()
    )


def test_the_lines_of_readme_make_the_optimisers_of_its_table() -> None:
    readme = (ROOT / "README.md").read_text()
    first_line = "from cser_bench.algorithms import QSparseLocalSGD"
    lines = first_line + readme.partition(first_line)[2].partition("```")[0]
    made: list[DistributedOptimizer] = []

    class Watched(QSparseLocalSGD):
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(*arguments, collectives=SoloCollectives(), **settings)
            made.append(self)

    names: dict[str, Any] = {"model": torch.nn.Linear(512, 512)}
    exec(lines.replace("QSparseLocalSGD(", "Watched("), names | {"Watched": Watched})
    every_third, every_step = made
    assert every_third.traffic_share(8) == pytest.approx(1 / 23, rel=0.05)
    assert every_step.traffic_share(8) == pytest.approx(1 / 8, rel=0.05)


def test_readme_has_the_hook_as_the_guide_has_it() -> None:
    readme = (ROOT / "README.md").read_text()
    shown = readme.partition("```python\n")[2].partition("```")[0]
    guide = (ROOT / "docs" / "in-your-own-script.md").read_text()
    lines = [line[1:] for line in guide.splitlines()]
    assert "register_comm_hook" in shown
    assert [
        line for line in filter(None, shown.splitlines()) if line not in lines
    ] == []
