"""The report of an accuracy experiment: made-up ones with holes in them, and those that ship."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from cser_bench.__main__ import main
from cser_bench.harness.records.shipped import shipped_experiments
from cser_bench.report import render
from cser_bench.report.accuracy_figures import (
    MOST_RANKED,
    drawn_methods,
    link_figure,
    loss_at_one_load,
    loss_figure,
    main_load,
)
from cser_bench.report.accuracy_report import build_report
from cser_bench.report.contrasts_section import contrasts_section
from cser_bench.report.efficiency_section import efficiency_of
from cser_bench.report.frame import Frames, read_frames
from cser_bench.report.labels import with_short_labels
from cser_bench.report.provenance_section import provenance_section
from cser_bench.report.ranking import ranking_of
from cser_bench.report.statistics import accuracy_frame, contrasts_frame
from cser_bench.report.wording import FORMATS
from tests.report.faults import faults_of
from tests.report.holed import RESULTS, Built, build, holed, resume, run_of, unpacked

pytestmark = pytest.mark.whole

REPORTED = [
    folder
    for folder in shipped_experiments()
    if (folder / "report.md").exists() and not folder.name.endswith("_tuning")
]
"""Those whose PDFs ship; the others' are made where somebody asks for them."""
LONG = RESULTS / "reference" / "fashion_mnist_long"
SMALL = RESULTS / "study_tail"
ROOT = RESULTS.parent
PART = re.compile(
    r"<!-- begin: Attempts and times -->.*<!-- end: Attempts and times -->", re.S
)


@pytest.fixture(scope="module")
def long() -> Frames:
    return read_frames(LONG)


def _files(folder: Path, *patterns: str) -> dict[str, bytes]:
    found = (path for pattern in patterns for path in folder.glob(pattern))
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(found)}


def _numbers(report: Path) -> list[str]:
    """The title and the lines of tables."""
    return [
        line
        for line in report.read_text().splitlines()
        if line.startswith(("# ", "| "))
    ]


@pytest.fixture
def what_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are not compared, so they are not saved."""
    monkeypatch.setattr(render, "save", lambda figure, path: plt.close(figure))


def assert_methods_stand_once_by_their_means(frames: Frames) -> None:
    """The first table and that of other ratios have every row that is not left to the CSV."""
    accuracy = accuracy_frame(frames)
    ranking = ranking_of(frames, accuracy, efficiency_of(frames))
    own = accuracy.query("is_own")
    shown = pd.concat([ranking.methods, ranking.further])
    assert len(shown) + ranking.left_out + sum(ranking.not_begun.values()) == len(own)
    assert len(ranking.methods) <= MOST_RANKED or ranking.further.empty
    written = "percent" if frames.metric.is_share else "nats"
    for table in (ranking.methods, ranking.further):
        means = [text.partition(" (")[0].replace("−", "-") for text in table["mean"]]
        scores = [
            float(text) if frames.metric.is_share else -float(text) for text in means
        ]
        assert scores == sorted(scores, reverse=True)
    by_mean = own.sort_values("mean", ascending=False).head(1)
    assert ranking.methods["label"].iloc[0] == by_mean["label"].iloc[0] or len(
        ranking.further
    )
    assert FORMATS[written](by_mean["mean"].iloc[0]) in {
        text.partition(" (")[0] for text in shown["mean"]
    }


@pytest.mark.parametrize("folder", REPORTED, ids=lambda folder: folder.name)
@pytest.mark.usefixtures("what_is_compared")
def test_a_shipped_report_has_the_numbers_of_its_records(
    folder: Path, tmp_path: Path
) -> None:
    """Title and tables, not the sentences between; methods stand in the order of their means."""
    frames = read_frames(folder)
    assert_methods_stand_once_by_their_means(frames)
    build_report(frames, tmp_path, with_pdf=False)
    assert _numbers(tmp_path / "report.md") == _numbers(folder / "report.md")


def test_what_does_not_ship_is_the_same_when_it_is_built_again(tmp_path: Path) -> None:
    """In two processes, whose order of sets and hashes differs: tables, figures, page and PDF."""
    outputs = [tmp_path / "once", tmp_path / "again"]
    for seed, output in enumerate(outputs):
        command = [sys.executable, "-m", "harness", "report", SMALL, "--output", output]
        environment = os.environ | {"PYTHONHASHSEED": str(seed)}
        subprocess.run(
            command, check=True, cwd=ROOT, env=environment, capture_output=True
        )
    once, again = (_files(output, "*.*", "csv/*", "figures/*") for output in outputs)
    assert {"report.md", "report.pdf", "report.html", "csv/runs.csv"} <= once.keys()
    assert [name for name in once if once[name] != again[name]] == []
    assert once.keys() == again.keys()


def test_a_comparison_is_the_row_minus_its_reference(long: Frames) -> None:
    """Also where its question names the reference first, as "does local SGD do as well as M-CSER"."""
    section = contrasts_section(long, contrasts_frame(long))
    assert section is not None
    asked = section.table[
        section.table["question"].str.startswith("Does local SGD do as well")
    ]
    assert asked["compared"].tolist() == [
        "M-CSER − local SGD",
        "M-CSER block − local SGD",
    ]
    for line in asked.itertuples():
        row, reference = line.compared.split(" − ")
        own = long.rows[long.rows["base"].isna() & (long.rows["ratio"] == 96)]
        rows = own.set_index("label")["row"]
        worse = long.done(rows[reference]).mean() - long.done(rows[row]).mean()
        assert float(line.gap.partition(" (")[0]) == pytest.approx(
            100 * worse, abs=0.0051
        )


def test_figures_can_be_read(long: Frames) -> None:
    """README shows that of the judged experiment."""
    accuracy = accuracy_frame(long)
    judged = read_frames(LONG.parent / "fashion_mnist_contrasts")
    families = long.experiment.families
    shown, load = loss_at_one_load(long, accuracy)
    assert shown["label"].is_unique
    assert (shown["link_models"] <= 1.05 * main_load(long)).all()
    assert load == main_load(long)
    quoted, *_ = loss_at_one_load(judged, accuracy_frame(judged))
    for each in (shown, quoted):
        assert faults_of(loss_figure(each, 0.005, "Accuracy drop", families)) == []
    own = accuracy[accuracy["is_own"] & (accuracy["row"] != "sgd")]
    assert drawn_methods(own, families)["label"].nunique() == 10
    assert faults_of(link_figure(own, 0.005, "Accuracy drop", families)) == []


def test_marks_are_hollow_only_where_drops_were_tested_against_the_margin(
    long: Frames,
) -> None:
    untested = read_frames(LONG.parent / "gpt_text_methods")
    faces = {}
    for frames in (long, untested):
        families = frames.experiment.families
        shown, _ = loss_at_one_load(frames, accuracy_frame(frames))
        figure = loss_figure(shown, 0.01, "Loss gap", families, "nats")
        (axes,) = figure.axes
        marks = [line for line in axes.get_lines() if line.get_marker() in "PDs^o*v"]
        faces[frames.experiment.name] = {line.get_markerfacecolor() for line in marks}
        said = {text.get_text() for text in figure.legends[0].get_texts()}
        assert ("inconclusive, or not tested" in said) == (frames is long)
    assert "white" in faces["fashion_mnist_long"]
    assert "white" not in faces["gpt_text_methods"]


def test_settings_have_the_local_step_of_most_methods_and_of_others() -> None:
    frames = with_short_labels(read_frames(LONG.parent / "gpt_text_methods"))
    settings = provenance_section(frames).settings.set_index("setting")["value"]
    betas = "betas 0.9 and 0.999, eps 1e-08, weight decay 0.1"
    assert settings["local step"] == f"AdamW, {betas}"
    other = settings["local step of Muon; DiLoCo-Muon"]
    assert other == f"Muon, momentum 0.95, Nesterov, {betas}"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A report with missing, failed and diverged runs in it."""
    return build(holed(tmp_path_factory.mktemp("small") / "results"))


def test_holes_are_said(small: Built) -> None:
    counts = read_frames(small.records).runs["status"].value_counts()
    assert (counts["diverged"], counts["missing"], counts["failed"]) == (1, 2, 1)
    assert "30 of 33 runs are done, 1 diverged" in small.markdown
    assert "2 of 3, 1 diverged" in small.markdown
    assert "Runs without a result: 1 failed and 2 missing" in small.markdown


def test_a_resumed_run_changes_its_own_part_alone(small: Built, tmp_path: Path) -> None:
    records = holed(tmp_path / "results")
    resume(run_of(records, "sgd", 1))
    resumed = build(records)
    assert PART.search(small.markdown)
    assert small.markdown != resumed.markdown
    assert PART.sub("", small.markdown) == PART.sub("", resumed.markdown)
    ours, theirs = (
        _files(built.output, "csv/*.csv", "figures/*") for built in (small, resumed)
    )
    assert [name for name in ours if ours[name] != theirs[name]] == ["csv/attempts.csv"]


def test_a_rebuild_gives_the_same_bytes(
    small: Built, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(small.records), "--output", str(tmp_path)]) == 0
    assert "report.md" in capsys.readouterr().out
    (tmp_path / "report.html").unlink()  # which the command alone writes
    assert _files(tmp_path, "**/*.*") == _files(small.output, "**/*.*")


def test_no_runs_and_a_tuning_have_reports_too(tmp_path: Path) -> None:
    records = unpacked(tmp_path / "results")
    for run in records.glob("*/"):
        shutil.rmtree(run)
    empty = build(records)
    assert "| not enough runs | M-CSER top-k − SGD | – |" in empty.markdown
    assert "0 of 33 runs are done" in empty.markdown
    assert not (empty.output / "figures").exists()
    assert (
        main(["report", str(RESULTS / "cmudict_tuning"), "--output", str(tmp_path)])
        == 0
    )
    assert (
        "A search for settings and learning rates."
        in (tmp_path / "report.md").read_text()
    )
