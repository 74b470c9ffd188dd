"""README's tables and picture: each line is one setting, what it needs follows by hand, and README has
what the records say."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pandas as pd
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


def frame_of(table: Table) -> pd.DataFrame:
    """A table's cells, by the method's label."""
    return table_frame(table).set_index("method")


IMAGES = tables()[0]
TEXT = tables()[1]
NETWORKS = ("small CNN", "residual network")


@pytest.mark.parametrize(("table", "line"), LINES, ids=name_of)
def test_a_line_is_one_setting_of_the_class_that_one_types(
    table: Table, line: MethodInTable
) -> None:
    runs = [run for run in (*line.runs, line.setting_of) if run]
    rows = [measured_row(run).row for run in runs]
    settings = {setting_in_short(row) for row in rows}
    assert len(settings) == 1, "its cells would mix two settings"
    if line.type:
        types = {methods()[row.algorithm].__name__ for row in rows}
        assert line.type in types


@pytest.mark.parametrize("table", tables(), ids=name_of)
def test_no_cell_is_empty_and_the_floor_communicates_nothing(table: Table) -> None:
    frame = frame_of(table)
    assert (frame.map(len) > 0).all().all()
    assert frame.loc["no communication", "traffic"] == "0"


def test_what_a_step_needs_by_hand() -> None:
    """ResNet-50: a model of 102.4 MB, 27 ms of passes, a ring of eight at 10 Gb/s, 0.05 ms a hop."""
    frame = frame_of(IMAGES)
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
    floor = frame.loc["no communication", "needs at 10 Gb/s"]
    assert floor < frame.loc["EF top-k", "needs at 10 Gb/s"]


def test_advice_has_the_names_of_the_tables() -> None:
    labels = {line.label for line in IMAGES.rows}
    assert set(names_by_key("residual").values()) <= labels
    assert names_by_key("perceptron") == {}


@pytest.mark.parametrize("table", tables(), ids=name_of)
def test_pages_have_the_tables_of_the_records(table: Table) -> None:
    path = table.page or "README.md"
    page = (ROOT / path).read_text()
    assert with_table(page, table.name, table_text(table), path) == page, f"run {AGAIN}"


def test_a_page_without_the_marks_is_refused() -> None:
    with pytest.raises(UsageError, match="has no lines <!-- begin: images -->"):
        with_table("nothing of the kind", "images", "", "page.md")


def test_a_table_goes_between_its_marks_alone() -> None:
    page = "a\n<!-- begin: images -->\nold\n<!-- end: images -->\nb\n"
    written = with_table(page, "images", "new", "page.md")
    assert written == page.replace("old", "new")


def test_the_picture_is_shown_and_draws_runs_that_ship() -> None:
    assert f"]({FIGURE})" in (ROOT / "README.md").read_text()
    assert (ROOT / FIGURE).is_file()
    for panel in panels():
        for runs in panel.lines.values():
            shares = [measured_row(run).traffic for run in runs]
            falling = sorted(shares, reverse=True)
            assert shares == falling, "a line goes from much to little traffic"


# The findings, which a person wrote


def findings() -> str:
    readme = (ROOT / "README.md").read_text()
    _, _, after_heading = readme.partition("## What we found")
    section, _, _ = after_heading.partition("<!-- begin")
    return " ".join(section.split())


def first(cell: str) -> float:
    """Return the number before an interval."""
    return float(cell.split()[0])


def margins(methods: list[str], link: str = "10 Gb/s") -> list[float]:
    """Return how many times the efficiency that they need methods have, on both networks."""
    frame = frame_of(IMAGES).loc[methods]
    needs = frame[f"needs at {link}"].astype(float)
    found: list[float] = []
    for network in NETWORKS:
        has = frame[network].map(first)
        found += (has / needs).tolist()
    return found


def test_the_findings_on_images_are_those_of_the_table() -> None:
    said = findings()
    best = margins(["EF 4-bit", "EF top-k"])
    of_best = f"they have {min(best):.1f} to {max(best):.1f} times what they need"
    assert of_best in said
    slow = margins(["EF 4-bit", "EF top-k"], "1 Gb/s")
    assert f"have {min(slow):.1f} to {max(slow):.1f} times what" in said
    hook = frame_of(IMAGES).loc["DDP + 4-bit hook"]
    bounds = [float(hook[network].removeprefix("at least ")) for network in NETWORKS]
    least = min(bounds) / float(hook["needs at 10 Gb/s"])
    assert f"keeps DDP and has at least {least:.1f} times" in said
    next_best = margins(["M-CSER 4-bit"])
    of_next = f"{min(next_best):.1f} to {max(next_best):.1f} times"
    assert f"M-CSER with 4 bits has {of_next}" in said
    low_rank, _ = margins(["DDP + PowerSGD hook"])
    assert f"PowerSGD hook {low_rank:.1f} times on the small CNN" in said
    # It sends half as much on the residual network as on the small CNN, and so needs less.
    on_residual = measured_row("resnet_regime/powersgd")
    assert 1 / on_residual.traffic == pytest.approx(30, abs=0.5)
    has_most = on_residual.estimate / need_of(on_residual, 10e9)
    assert f"and {has_most:.1f} on the residual network, at 1/30" in said
    others = margins(["DiLoCo", "local SGD", "M-CSER blocks"])
    assert max(others) < min(next_best) <= min(best)
    frame = frame_of(IMAGES)
    blocks = frame.loc["M-CSER blocks"]
    has = [first(blocks[network]) for network in NETWORKS]
    needs = float(blocks["needs at 10 Gb/s"])
    assert f"its blocks have {has[0]} and {has[1]} and need {needs}" in said
    needs_at_1_gb = float(blocks["needs at 1 Gb/s"])
    assert needs_at_1_gb < min(has) <= max(has) < needs
    diloco = first(frame.loc["DiLoCo", "small CNN"])
    local_sgd = first(frame.loc["local SGD", "small CNN"])
    outer = f"has {diloco:.2f} on the small CNN with its outer step tuned"
    assert f"{outer}, local SGD {local_sgd:.2f}" in said


def test_at_25_gbits_no_method_has_clearly_more_than_was_emulated() -> None:
    needs = emulated_needs()
    is_at_25_gb = needs["bits_per_second"] == 2.5e10
    is_rival = needs["method"].isin(["ddp", "ddp_fp16"])
    fast = needs[is_at_25_gb & ~is_rival]
    least = fast["needed_fp16_encoded"].min()
    most = fast["needed_fp16_encoded"].max()
    assert f"at 25 Gb/s need {least:.2f} to {most:.2f}" in findings()
    frame = frame_of(IMAGES)
    for network in NETWORKS:
        lows = []
        for cell in frame[network][2:-1]:
            _, has_interval, interval = cell.partition("(")
            if has_interval:
                low, _, _ = interval.partition(" to ")
                lows.append(float(low))
        assert len(lows) == len(frame) - 4, "all but DDP, the hooks and the bound"
        assert max(lows) < least, "no interval lies above"
    are_above = []
    for name in ("study_cnn_hooks", "study_resnet_hooks"):
        hook = measured_row(f"{name}/ef_4bit_gradients-1")
        kind, _, bound = hook.efficiency.rpartition(" ")
        assert kind == "at least"
        are_above.append(float(bound) > need_of(hook, 25e9))
    assert not all(are_above), "no bound lies above on both networks"
    assert "no method has clearly more on both networks" in findings()


WITHOUT_TIMES = ("DDP + PowerSGD hook", "DDP + 4-bit hook", "no communication")
TIMED = [line for line in IMAGES.rows if line.label not in WITHOUT_TIMES]


@pytest.mark.parametrize("line", TIMED, ids=name_of)
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
    frame = frame_of(IMAGES)
    # It sends 1.5 times as much as EF top-k does, all in one step.
    assert sent.traffic == pytest.approx(1 / 16, rel=0.01)
    needs = frame["needs at 1 Gb/s"].astype(float)
    expected = 1.5 * needs["EF top-k"]
    assert needs["DDP + PowerSGD hook"] == pytest.approx(expected, rel=0.3)


def test_the_findings_on_text_are_those_of_the_table() -> None:
    frame = frame_of(TEXT)
    has = frame["GPT"]
    hook = frame.loc["DDP + 4-bit hook"]
    needs = hook["needs at 10 Gb/s"]
    best = f"4-bit hook, which has {first(hook['GPT']):.2f}"
    assert f"keep DDP and use the {best} and needs {needs}." in findings()
    slow = []
    for name in ("EF 4-bit", "DDP + 4-bit hook", "EF top-k"):
        need = float(frame.loc[name, "needs at 1 Gb/s"])
        slow.append(first(has[name]) / need)
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
    frame = frame_of(TEXT)
    predicted = frame.loc[frame["predicted"] != "–"]
    assert len(predicted) == 3
    for _, line in predicted.iterrows():
        _, low, high = re.findall(r"[\d.]+", line["GPT"])
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
    needs = frame_of(IMAGES)["needs at 10 Gb/s"].astype(float)
    most = needs["DDP (fp32)"] / needs["no communication"]
    words = f"a step that sends nothing is {most:.1f} times as fast as DDP's in fp32"
    assert words in findings()


def test_the_lines_of_readme_make_the_optimisers_of_its_table() -> None:
    readme = (ROOT / "README.md").read_text()
    first_line = "from cser_bench.algorithms import QSparseLocalSGD"
    _, _, others = readme.partition(first_line)
    rest, _, _ = others.partition("```")
    lines = first_line + rest
    made: list[DistributedOptimizer] = []

    class Watched(QSparseLocalSGD):
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(*arguments, collectives=SoloCollectives(), **settings)
            made.append(self)

    names = {"model": torch.nn.Linear(512, 512), "Watched": Watched}
    exec(lines.replace("QSparseLocalSGD(", "Watched("), names)
    every_third, every_step = made
    third_share = every_third.traffic_share(8)
    step_share = every_step.traffic_share(8)
    assert third_share == pytest.approx(1 / 23, rel=0.05)
    assert step_share == pytest.approx(1 / 8, rel=0.05)


def test_readme_has_the_hook_as_the_guide_has_it() -> None:
    readme = (ROOT / "README.md").read_text()
    _, _, after_fence = readme.partition("```python\n")
    shown, _, _ = after_fence.partition("```")
    guide = (ROOT / "docs" / "in-your-own-script.md").read_text()
    lines = [line[1:] for line in guide.splitlines()]
    assert "register_comm_hook" in shown
    # A statement a line, as the guide has them.
    statements = ast.unparse(ast.parse(shown)).splitlines()
    assert [each for each in statements if each not in lines] == []
