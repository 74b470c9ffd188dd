"""The table of drops by size and length, worked out again from the packed records by pandas."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from scipy import stats

from cser_bench.report.frame import read_frames
from cser_bench.report.sizes import sizes_frame
from cser_bench.report.wording import gap

REFERENCE = Path(__file__).parents[2] / "results" / "reference"


def losses_of(folder: Path) -> tuple[pd.DataFrame, str]:
    """The test loss of each planned run, with its method, size and length; and the baseline."""
    plan = json.loads((folder / "experiment.json").read_text())
    _, *packed = (folder / "runs.jsonl").read_text().splitlines()
    results = {}
    for line in packed:
        run = json.loads(line)
        results[run["run_id"]] = run["result"]
    lines = [
        {
            "method": row["row"].partition("@")[0],
            "label": row["label"],
            "num_parameters": row["num_parameters"],
            "num_steps": row["num_steps"],
            "loss": results[run_id]["test_loss"],
        }
        for row in plan["rows"]
        for run_id in row["runs"].values()
    ]
    return pd.DataFrame(lines), plan["baseline"]


@pytest.mark.parametrize("name", ["gap_text", "gap_text_load"])
def test_each_method_has_its_drop_at_each_size_and_length(name: str) -> None:
    losses, baseline = losses_of(REFERENCE / name)
    place = ["num_parameters", "num_steps"]
    of_baseline = dict(
        iter(losses[losses["method"] == baseline].groupby(place)["loss"])
    )
    expected = {}
    for (label, *at), own in losses[losses["method"] != baseline].groupby(
        ["label", *place]
    ):
        reference = of_baseline[tuple(at)]
        drop = stats.ttest_ind(own["loss"], reference, equal_var=False)
        low, high = drop.confidence_interval(0.95)
        mean = own["loss"].mean() - reference.mean()
        expected[label, *at] = (
            len(own),
            of_baseline[tuple(at)].mean(),
            mean,
            low,
            high,
        )
    found = sizes_frame(read_frames(REFERENCE / name))
    assert len(found) == len(expected)
    for line in found.itertuples():
        # Scores are losses with their sign turned, so that more is better.
        numbers = (
            -line.baseline,
            -line.difference,
            -line.difference_high,
            -line.difference_low,
        )
        key = (line.label, line.num_parameters, line.num_steps)
        num_runs, *others = expected[key]
        assert line.num_runs == num_runs
        assert numbers == pytest.approx(tuple(others), abs=1e-9)


def test_an_experiment_of_one_size_has_no_such_table() -> None:
    assert sizes_frame(read_frames(REFERENCE / "gpt_text")).empty


def test_a_tie_is_rounded_as_everywhere_else() -> None:
    """This drop is 7.315 points, but for its last bits."""
    sizes = sizes_frame(read_frames(REFERENCE / "gap_images"))
    [line] = sizes[
        (sizes["num_parameters"] == 303_450) & (sizes["label"] == "local SGD")
    ].to_dict("records")
    assert line["drop"].startswith(f"{gap(line['difference'], 'points')} (")
