"""The report of speed: what is built of few records, what is said of the shipped ones, and whether it can be read."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.records.store import RecordError
from report.frame import UsageError, read_frames
from report.render import markdown_of
from report.speed.comparisons import headline_marks, needed_ratios_frame, spans_above, speedup
from report.speed.report import build_speed_report, contents
from report.speed.workload_model import SpeedStudy, codec_bytes, read_study
from tests.report.faults import faults_of
from tests.report.made_up_timings import RATES, ring_seconds, sweep, timing, write_full, write_study

SHIPPED = Path(__file__).parents[2] / "results/speedups"


@pytest.fixture(scope="module")
def study() -> SpeedStudy:
    return read_study(SHIPPED)


@pytest.fixture(scope="module")
def built(study: SpeedStudy) -> tuple[str, dict[str, Any], dict[str, pd.DataFrame], dict[str, Any]]:
    experiments = [read_frames(SHIPPED.parent / "reference" / f"fashion_mnist_{name}") for name in ("long", "regime")]
    context, frames, figures = contents(study, experiments)
    return markdown_of("speed.md.j2", context), context, frames, figures


def test_spans_end_where_a_margin_crosses_nothing() -> None:
    spans = spans_above(lambda x: (x - 3) * (40 - x), 1.0, 1000.0)
    assert spans == [(pytest.approx(3.0), pytest.approx(40.0))]
    assert spans_above(lambda x: 1.0, 1.0, 10.0) == [(1.0, 10.0)] and spans_above(lambda x: -x, 1.0, 10.0) == []


def test_a_slower_device_and_its_messages_by_hand(tmp_path: Path) -> None:
    study = read_study(write_full(tmp_path))
    model, bits = study.models["resnet50_v100"], 20 * 100e6
    assert model.emulated_device is not None
    for slower in (1.0, 2.0):
        base, own = slower * 0.03, slower * 0.03
        base += ring_seconds(4 * 25_557_032, 100e6) / 20
        own += ring_seconds(4 * 25_557_032 / 256, 100e6) / 20
        update = 25_557_032 / 900e9
        codecs = [codec_bytes()[name] * update for name in ("all_reduce", "csea")]
        expected = (base + codecs[0]) / (own + codecs[1])
        assert speedup(model, "csea", "all_reduce", bits, slower) == pytest.approx(expected, rel=1e-6)
    ratio = needed_ratios_frame(model, [bits])["ratio"].iloc[0]
    # Shrunk so far, buckets that follow one another leave a step a tenth over its compute.
    last = ring_seconds(4 * 25_557_032 / 4 / ratio, 100e6) / 20
    assert ratio > 1 and last <= 0.1 * 0.03 * (1 + 1e-6)


def test_published_rates_are_scaled_to_the_batch(study: SpeedStudy) -> None:
    from report.speed.comparisons import HEADLINES

    marks = headline_marks(HEADLINES[0], study.models["resnet50_v100"])["compute_seconds"]
    # 32 images at 1,200 a second of one GPU, and at 8,322, 5,815.8 and 4,808 of eight.
    assert marks.to_list() == pytest.approx([32 / 1200, 32 / 1040.25, 32 / 726.975, 32 / 601.0])


def test_the_model_is_off_by_what_the_report_says(built: tuple[Any, ...], study: SpeedStudy) -> None:
    text, _, frames, _ = built
    cells = frames["step_times"]
    whole = (cells["predicted_seconds"] / cells["seconds"] - 1).abs()
    large = cells[cells["communication_seconds"] > 0.1 * cells["compute_seconds"]]
    talk = (large["predicted_communication_seconds"] / large["communication_seconds"] - 1).abs()
    for errors, count in ((whole, 196), (talk, 117)):
        numbers = [f"{100 * each:.1f}" for each in (errors.mean(), errors.median(), errors.quantile(0.9))]
        assert f"| all | {count} | {' | '.join(numbers)} |" in text
    assert "null model" not in text and "infinite" not in text


def test_the_factor_of_two_machines_is_first_what_was_timed(built: tuple[Any, ...]) -> None:
    text, _, frames, _ = built
    cells = frames["step_times"]
    own = cells[(cells["machines"] == 2)].set_index("method")["seconds"]
    timed, modelled = (text.index(f"Two machines of four GPUs, {basis}") for basis in ("emulated", "modelled"))
    assert timed < modelled and f"{own['ddp'] / own['mcser']:.2f}x over DDP" in text[timed:modelled]


def test_the_headline_changes_with_the_compute_time(built: tuple[Any, ...]) -> None:
    _, _, frames, _ = built
    lines = frames["headlines"]
    lines = lines[(lines["bits_per_second"] == 10e9) & (lines["method"] == "mcser") & (lines["rival"] == "ddp")]
    lines = lines[lines["headline"] == "4.5x on ImageNet"].set_index("compute_seconds")["factor"]
    assert lines.index.min() == 0.02 and lines.index.max() == 0.06 and lines.is_monotonic_decreasing
    first, later = (lines[abs(lines.index - 32 / rate) < 1e-9].iloc[0] for rate in (1200, 726.975))
    assert first > 4.5 > later


def test_every_sentence_is_short_and_every_figure_can_be_read(built: tuple[Any, ...]) -> None:
    text, _, _, figures = built
    verdict = [line.lstrip("> -") for line in text.split("\n![")[0].splitlines() if line.startswith(">")]
    for line in verdict:
        for sentence in re.split(r"(?<=[.!?])\s+", line.replace("**", "")):
            assert len(sentence.split()) <= 30, sentence
            plain = re.sub(r"“[^”]*”|fp\d+|rank \d", "", sentence)  # names that hold a number
            assert len(re.findall(r"\d[\d,.]*", plain)) <= 4, sentence
    assert {"speedups", "headlines"} <= set(figures)
    for name, figure in figures.items():
        assert faults_of(figure) == [], name


def test_the_shipped_report_is_of_the_shipped_records(built: tuple[Any, ...]) -> None:
    """But for what grows with every session of scored methods, which stand in a folder of their own."""
    shipped, now = (
        re.sub(r"## Loss beside step time.*?(?=\n## )|(?m:^- (commits|command|left out).*$)", "", text, flags=re.DOTALL)
        for text in ((SHIPPED / "report.md").read_text(), built[0])
    )
    assert shipped == now and "## Layouts" in now


def test_a_report_can_be_built_of_whatever_there_is(tmp_path: Path) -> None:
    empty = build_speed_report(write_study(tmp_path / "empty", [], []))
    assert "Nothing can be said yet" in empty.read_text() and empty.with_suffix(".pdf").exists()
    unswept = build_speed_report(write_study(tmp_path / "unswept", [], [timing("resnet50_v100", 2e9)]))
    assert "Nothing can be said yet" in unswept.read_text()
    measured = write_study(tmp_path / "measured", [sweep(rate) for rate in RATES], [timing("fashion_mnist", 100e6)])
    text = build_speed_report(measured).read_text()
    assert "Measured milliseconds of a step" in text and "Emulated" not in text
    full = build_speed_report(write_full(tmp_path / "full"), output=tmp_path / "out")
    first = full.read_bytes()
    assert build_speed_report(tmp_path / "full", output=tmp_path / "again").read_bytes() == first


def test_mistakes_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no study.json"):
        read_study(tmp_path)
    with pytest.raises(UsageError, match="names the same experiment twice"):
        build_speed_report(SHIPPED, [SHIPPED, SHIPPED])
    folder = write_study(tmp_path / "mixed", [sweep(100e6)], [timing("fashion_mnist", 100e6)])
    record = json.loads((folder / "timing-0.json").read_text())
    record["attempt"]["host"] = "elsewhere"
    (folder / "timing-0.json").write_text(json.dumps(record))
    with pytest.raises(RecordError, match=r"timed on another machine than sweep-0\.json"):
        read_study(folder)


def test_no_sweep_no_prediction(tmp_path: Path) -> None:
    cells = read_study(write_study(tmp_path, [], [timing("fashion_mnist", 100e6)])).cells
    assert cells["predicted_seconds"].isna().all() and not math.isnan(cells["seconds"].iloc[0])
