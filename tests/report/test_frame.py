"""Frames of shipped experiments against their records."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from harness.records.packs import read_runs
from harness.records.store import Result
from report.frame import Frames, read_frames, status_of

RESULTS = Path(__file__).parents[2] / "results"


@pytest.fixture(scope="module")
def frames() -> Frames:
    return read_frames(RESULTS / "reference" / "fashion_mnist_regime")


def test_runs_and_scores_are_the_records(frames: Frames) -> None:
    runs = frames.runs.set_index("run_id")
    for run_id, record in read_runs(frames.folder).items():
        assert record.result is not None
        assert runs.loc[run_id, "score"] == record.result.test_accuracy
        events = frames.scores[frames.scores["run_id"] == run_id]
        assert events["score"].to_list() == [event.test_accuracy for event in record.events]
        assert runs.loc[run_id, "bits"] == sum(
            record.result.traffic[purpose].bits
            for purpose in ("gradient", "error", "model")
            if purpose in record.result.traffic
        )
    assert set(runs["status"]) == {"done"} and frames.unplanned == 0


def test_settings_are_columns(frames: Frames) -> None:
    row = frames.by_row.loc["mcser-96"]
    assert (row["error_compressor.kind"], row["error_compressor.ratio"], row["reset_interval"]) == ("top_k", 16, 24)
    assert math.isnan(frames.by_row.loc["sgd", "reset_interval"]) and row["momentum"] == 0.9


def test_the_tuning_is_found_and_named_by_row(frames: Frames) -> None:
    chosen = frames.tuning[frames.tuning["row"] == "sgd"]
    assert chosen["learning_rate"].nunique() >= 9 and chosen["score"].notna().all()
    alone = read_frames(RESULTS / "fashion_mnist_long_tuning")
    assert alone.tuning["trial"].to_list() == alone.runs["row"].to_list()


@pytest.mark.parametrize(
    ("loss", "status"),
    [(0.5, "done"), (2302.0, "done"), (2303.0, "diverged"), (math.inf, "diverged"), (math.nan, "diverged")],
)
def test_a_loss_beyond_a_thousand_guesses_has_diverged(frames: Frames, loss: float, status: str) -> None:
    """Ten classes: a constant guess loses ln 10 = 2.3026."""
    result: Result | None = next(iter(read_runs(frames.folder).values())).result
    assert result is not None and status_of(result.model_copy(update={"train_loss": loss})) == status
