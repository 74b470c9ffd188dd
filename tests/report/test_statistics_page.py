"""docs/statistics.md says what is recorded in results/statistics; correlations are those of the packs."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm

from tests.report.test_independent import DECLARED, scores_of

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "results" / "statistics"
PAGE = (ROOT / "docs" / "statistics.md").read_text()


@pytest.fixture(scope="module")
def shipped() -> pd.DataFrame:
    return pd.read_csv(SHIPPED / "simulation.csv")


def test_welch_alone_holds_its_level_unpaired(shipped: pd.DataFrame) -> None:
    """The condition of the choice: three seeds, and one row four times as noisy."""
    assert len(shipped) == 900
    most = shipped.groupby("rule")["error_margin"].max()
    assert most["Welch"] < 0.06
    assert most["moderated, robust"] > 0.1
    assert most["pooled"] > 0.2
    hard = shipped[
        (shipped["seeds"] == 3)
        & (shipped["noise"] == "row")
        & (shipped["correlation"] == 0)
    ]
    welch = hard[hard["rule"] == "Welch"]
    moderated = hard[hard["rule"] == "moderated, robust"]
    assert (welch["error_margin"] < 0.06).all()
    assert (moderated["error_margin"] > 0.08).all()


def test_one_family_errs_in_no_more_than_its_share() -> None:
    recorded = pd.read_csv(SHIPPED / "families.csv")
    assert (recorded["one_family"] < 0.05).all()
    assert recorded["two_families"].max() > 0.08


def test_correlations_are_those_of_the_packs() -> None:
    recorded = pd.read_csv(SHIPPED / "correlations.csv").set_index("experiment")
    declared = {folder.name for folder in DECLARED}
    assert set(recorded.index) == declared
    for folder, plan in DECLARED.items():
        seeds = {
            (row["row"], run_id): seed
            for row in plan["rows"]
            for seed, run_id in row["runs"].items()
        }
        named = {
            contrast[key]
            for contrast in plan["contrasts"]
            for key in ("row", "reference")
        }
        runs = scores_of(folder, plan)
        is_named = runs["row"].isin(named)
        runs = runs[~runs["diverged"] & is_named]
        runs["seed"] = [
            seeds[row, run_id]
            for row, run_id in zip(runs["row"], runs["run_id"], strict=True)
        ]
        rows_at_seed = runs.groupby("seed")["row"].transform("size")
        runs = runs[rows_at_seed == len(named)]
        table = anova_lm(ols("score ~ C(row) + C(seed)", runs).fit())
        between = table.loc["C(seed)", "mean_sq"]
        within = table.loc["Residual", "mean_sq"]
        others = len(named) - 1
        expected = (between - within) / (between + others * within)
        found = recorded.loc[folder.name, "value"]
        assert found == pytest.approx(expected, abs=1e-4)


def table_of(name: str) -> list[list[str]]:
    """Cells of a table of the page, without its head."""
    _, _, after_mark = PAGE.partition(f"<!-- table: {name} -->\n")
    part, _, _ = after_mark.partition("\n\n")
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in part.splitlines()[2:]
    ]


def test_the_pages_errors_are_those_recorded(shipped: pd.DataFrame) -> None:
    plain = shipped[shipped["correlation"] == 0]
    most = plain.groupby(["rule", "seeds", "noise"])["error_margin"].max()
    lines = table_of("errors")
    assert len(lines) == 8
    for rule, seeds, *cells in lines:
        noises = ("equal", "as shipped", "row", "other row", "baseline")
        assert cells == [
            f"{100 * most[rule, int(seeds), noise]:.1f}" for noise in noises
        ]
    welch = shipped[shipped["rule"] == "Welch"]
    at_margin, of_difference = (
        100 * welch[["error_margin", "error_better"]].max()
    ).tolist()
    assert (
        f"the most is {at_margin:.1f} at the margin's edge, and {of_difference:.1f} for a"
        in PAGE
    )
    said = (
        f"cover the truth in {100 * welch['coverage'].min():.1f} to "
        f"{100 * welch['coverage'].max():.1f} %"
    )
    assert said in PAGE


def test_the_pages_costs_and_pairs_are_those_recorded(shipped: pd.DataFrame) -> None:
    is_equal = shipped["noise"] == "equal"
    alike = shipped[(shipped["rows"] == 10) & is_equal]
    known = alike.set_index(["rule", "seeds", "baseline_seeds", "correlation"])
    costs = table_of("costs")
    pairs = table_of("pairing")
    assert len(costs) == 6
    assert len(pairs) == 9
    for rule, count, *cells in costs:
        num_seeds = int(count)
        line = known.loc[(rule, num_seeds, num_seeds, 0.0)]
        assert cells == [
            f"{line['half_width']:.2f}",
            f"{100 * line['power']:.0f}",
            f"{100 * line['power_holm']:.0f}",
        ]
    for count, others, correlation, *cells in pairs:
        lines = [
            known.loc[(rule, int(count), int(others), float(correlation))]
            for rule in ("Welch", "paired")
        ]
        widths = [f"{line['half_width']:.2f}" for line in lines]
        assert cells == [
            *widths,
            *(f"{100 * line['power_holm']:.0f}" for line in lines),
        ]


def test_what_the_page_says_of_correlations_and_families_is_what_was_recorded() -> None:
    found = pd.read_csv(SHIPPED / "correlations.csv").set_index("experiment")
    values = found["value"]
    ends = []
    for value in (values.min(), values.max()):
        ends.append(f"{value:+.2f}".replace("-", "−"))
    assert (
        f"correlation is estimated at {ends[0]} to {ends[1]}, with a median of {values.median():.2f}"
        in " ".join(PAGE.split())
    )
    assert f"[{len(found)} experiments]" in PAGE
    assert (found["high"] > 0.3).sum() == len(found) - 1, (
        "all intervals except one reach beyond 0.3"
    )
    above = re.search(r"above 0.3 in five: ([^.]*)\.", PAGE)
    assert above
    named = set(re.findall(r"`(\w+)`", above[1]))
    assert named == set(values.index[values > 0.3])
    families = pd.read_csv(SHIPPED / "families.csv")
    most = families[["one_family", "two_families"]].max()
    assert f"at most {100 * most['one_family']:.1f} %" in PAGE
    assert f"up to {100 * most['two_families']:.1f} %" in PAGE
