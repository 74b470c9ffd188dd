"""The tracks that ship: frozen rules, entries in good form, and the page that is built of them."""

from __future__ import annotations

import math
from itertools import combinations

import pytest

from cser_bench.harness.places import TRACKS
from cser_bench.harness.plan.plan import plan_experiment
from cser_bench.harness.records.experiment import read_experiment
from cser_bench.harness.records.tracks import digest_of, read_entries, read_track
from cser_bench.harness.tracks.form import check_form
from cser_bench.report.frame import read_frames
from cser_bench.report.leaderboard import PAGE, leaderboard_text, read_leaderboard
from cser_bench.report.leaderboard_figure import draw_leaderboard
from tests.harness.support import ROOT
from tests.report.faults import faults_of

FROZEN = {
    "1": {
        "track.toml": "cd7531062e42b005f27a69d1e99787def708a08bb45a29aff9d5756bdf97cc3b",
        "rules.md": "c51ab3afe17ff9682b5aabbf6dce3f262e55aa9babc1ca31800f206ad21a2cc4",
    }
}
"""A rule that changes is another track's: what was entered was entered under these."""

SHIPPED = read_entries(ROOT / "tracks", "1")
ENTRIES = {entry.name: entry for entry in SHIPPED}


@pytest.mark.parametrize("track", FROZEN)
def test_rules_are_frozen(track: str) -> None:
    folder = ROOT / "tracks" / track
    found = {name: digest_of(folder / name) for name in FROZEN[track]}
    assert found == FROZEN[track]


def test_rules_go_with_the_program() -> None:
    assert read_track(TRACKS, "1") == read_track(ROOT / "tracks", "1")


@pytest.mark.parametrize("name", ENTRIES)
def test_an_entry_is_in_good_form(name: str) -> None:
    check_form(read_track(ROOT / "tracks", "1"), ENTRIES[name])


def test_the_page_is_that_of_the_entries() -> None:
    assert (ROOT / "tracks" / "1" / PAGE).read_text() == leaderboard_text(
        ROOT / "tracks", "1"
    )


def test_the_picture_has_each_entry_and_can_be_read() -> None:
    """Each has its gap and a place near its traffic, where no other mark hides it."""
    board = read_leaderboard(ROOT / "tracks", "1")
    figure = draw_leaderboard(board.entries, board.bounds)
    [axes] = figure.axes
    drawn = []
    for bars in axes.containers:
        [place] = bars.lines[0].get_xydata()
        drawn.append(place)
    gaps = sorted(round(line.gap.mean, 9) for line in board.entries)
    heights = sorted(round(float(y), 9) for _, y in drawn)
    assert heights == gaps
    for x, y in drawn:
        [entry] = [line for line in board.entries if math.isclose(line.gap.mean, y)]
        assert 0.7 < x / entry.traffic < 1.4
    figure.draw_without_rendering()
    pixels = axes.transData.transform(drawn)
    for one, other in combinations(pixels, 2):
        # Marks are 4 points wide.
        inches = math.dist(one, other) / figure.dpi
        assert 72 * inches > 4
    assert faults_of(figure) == []


def test_the_spread_is_that_of_the_records() -> None:
    track = read_track(ROOT / "tracks", "1")
    bound = track.everything_sent
    frames = read_frames(ROOT / bound.records)
    scores = frames.done(bound.row)
    assert len(scores) == track.spread.num_seeds
    deviation = scores.std(ddof=1)
    assert math.isclose(deviation, track.spread.deviation_nats, abs_tol=5e-5)


def test_the_twenty_seeds_of_the_baseline_go_on_from_those_that_ship() -> None:
    plan = plan_experiment(
        str(ROOT / "tracks" / "1" / "baseline.toml"), ROOT / "results"
    )
    [row] = plan.experiment.rows
    shipped = {
        row.row: row
        for row in read_experiment(ROOT / "results/reference/gpt_text").rows
    }
    assert len(row.runs) == 20
    assert shipped["adamw"].runs.items() <= row.runs.items()
