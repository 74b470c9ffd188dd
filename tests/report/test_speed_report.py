"""The report of speed: what is built of few records, what is said of the shipped ones, and whether
it can be read."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cser_bench.harness.errors import UsageError
from cser_bench.harness.records.experiment import read_experiment
from cser_bench.harness.records.store import RecordError
from cser_bench.report.labels import short_label
from cser_bench.report.render import markdown_of
from cser_bench.report.speed.comparisons import HEADLINES, headline_marks, speedup
from cser_bench.report.speed.report import build_speed_report, contents
from cser_bench.report.speed.tables import shown_steps, steps_table
from cser_bench.report.speed.timed import experiments_beside, scored_steps_frame
from cser_bench.report.speed.workload_model import SpeedStudy, codec_bytes, read_study
from tests.report.faults import faults_of
from tests.report.made_up_timings import (
    NUM_PARAMETERS,
    ring_seconds,
    sweep,
    timing,
    write_study,
)

SHIPPED = Path(__file__).parents[2] / "results/speedups"


@pytest.fixture(scope="module")
def study() -> SpeedStudy:
    return read_study(SHIPPED)


@pytest.fixture(scope="module")
def built(study: SpeedStudy) -> tuple[str, dict[str, pd.DataFrame], dict[str, Any]]:
    context, frames, figures = contents(
        study, experiments_beside(SHIPPED, study.sessions)
    )
    return markdown_of("speed.md.j2", context), frames, figures


def test_a_slower_device_and_its_messages_by_hand(tmp_path: Path) -> None:
    at_full_speed = timing(20 * 100e6)
    folder = write_study(tmp_path, [sweep(100e6)], [at_full_speed])
    study = read_study(folder)
    model = study.models["resnet50_v100"]
    bits = 20 * 100e6
    assert model.emulated_device is not None
    for slower in (1.0, 2.0):
        base = slower * 0.03 + ring_seconds(4 * NUM_PARAMETERS, 100e6) / 20
        own_bytes = 4 * NUM_PARAMETERS / 256
        own = slower * 0.03 + ring_seconds(own_bytes, 100e6) / 20
        codecs = [
            codec_bytes()[name] * NUM_PARAMETERS / 900e9
            for name in ("all_reduce", "csea")
        ]
        expected = (base + codecs[0]) / (own + codecs[1])
        assert speedup(model, "csea", "all_reduce", bits, slower) == pytest.approx(
            expected, rel=1e-6
        )


def test_published_rates_are_scaled_to_the_batch(study: SpeedStudy) -> None:
    marks = headline_marks(HEADLINES[0], study.models["resnet50_v100"])
    # 32 images at 1,200 a second of one GPU, and at 8,322, 5,815.8 and 4,808 of eight.
    assert [*marks] == pytest.approx(
        [32 / 1200, 32 / 1040.25, 32 / 726.975, 32 / 601.0]
    )


def test_the_model_is_off_by_what_the_report_says(
    built: tuple[Any, ...], study: SpeedStudy
) -> None:
    text, frames, _ = built
    cells = frames["step_times"]
    ratios = cells["predicted_seconds"] / cells["seconds"]
    whole = (ratios - 1).abs()
    large = cells[cells["communication_seconds"] > 0.1 * cells["compute_seconds"]]
    talk = (
        large["predicted_communication_seconds"] / large["communication_seconds"] - 1
    ).abs()
    for errors, count in ((whole, 196), (talk, 117)):
        numbers = [
            f"{100 * each:.1f}"
            for each in (errors.mean(), errors.median(), errors.quantile(0.9))
        ]
        assert f"| all | {count} | {' | '.join(numbers)} |" in text


def test_the_first_table_is_of_what_is_scored_and_can_be_looked_up(
    built: tuple[Any, ...], study: SpeedStudy
) -> None:
    text = built[0]
    steps = scored_steps_frame(study.sessions)
    is_at_10 = steps["bits_per_second"] == 10e9
    at_10 = steps[is_at_10].set_index("method")["seconds"]
    over_ddp = at_10["ddp"] / at_10["mcser-96"]
    over_best = at_10["ddp_powersgd_1"] / at_10["mcser-96"]
    head = f"| M-CSER top-k | 96 | emulated, without encoding | {over_ddp:.2f}x | {over_best:.2f}x |"
    first_table = text.partition("\n## ")[0]
    assert head in first_table
    [line] = re.findall(
        r"^\| DDP \+ PowerSGD hook rank 1 \| 187 \| no score \|.*$",
        text,
        flags=re.MULTILINE,
    )
    assert f"| {1e3 * at_10['ddp_powersgd_1']:.1f} (" in line


def test_the_title_is_so(built: tuple[Any, ...]) -> None:
    text, frames, _ = built
    assert text.startswith(
        "# At 10 Gb/s a step of ResNet-50 with the passes of a V100 is, at ratio 64 or more, over "
        "four times as fast"
    )
    cells = frames["step_times"]
    is_titles = (
        (cells["workload"] == "resnet50_v100")
        & (cells["machines"] == 8)
        & ((cells["bits_per_second"] / 10e9 - 1).abs() < 1e-3)
        & (cells["dilation"] == 64)
    )
    of_title = cells[is_titles].set_index("method")
    large = of_title.loc[of_title["ratio"] >= 64, "seconds"]
    assert len(large) == 19
    of_ddp = of_title.loc["ddp", "seconds"]
    assert large.max() < of_ddp / 4


def test_the_powersgd_hook_is_faster_than_what_was_scored(
    built: tuple[Any, ...], study: SpeedStudy
) -> None:
    text = built[0]
    assert "which is faster than every scored method, by up to a fifth" in text
    steps = scored_steps_frame(study.sessions)
    is_at_10 = steps["bits_per_second"] == 10e9
    at_10 = steps[is_at_10].set_index("method")["seconds"]
    is_hook_or_ddp = at_10.index.str.startswith("ddp")
    shorter = 1 - at_10["ddp_powersgd_1"] / at_10[~is_hook_or_ddp]
    assert shorter.min() > 0
    assert shorter.max() == pytest.approx(0.2, abs=0.02)


def test_the_caption_on_latency_names_those_of_ratio_256(
    built: tuple[Any, ...], study: SpeedStudy
) -> None:
    [sentence] = re.findall(r"[^.]* have ratio 256\.", built[0])
    timing = study.wide[0]
    num_parameters = timing.workload.num_parameters
    for method in timing.methods:
        is_256 = method.payload_reduction(num_parameters) == pytest.approx(
            256, rel=0.01
        )
        name = method.label.removesuffix(" blocks")
        assert (re.search(rf"\b{name}\b", sentence) is not None) == is_256, name


def test_on_links_with_latency_powersgd_is_slowest_and_rare_averages_are_fastest(
    built: tuple[Any, ...],
) -> None:
    text, frames, _ = built
    assert "this hook has the longest steps of all" in text
    assert "average rarely, as NoLoCo, local SGD and DiLoCo do" in text
    steps = frames["wide_steps"]
    slow = steps[steps["latency_seconds"] > 0]
    for _, at_one in slow.groupby(["latency_seconds", "jitter_seconds"]):
        seconds = at_one.set_index("label")["seconds"].sort_values()
        assert set(seconds.index[:3]) == {"local SGD", "DiLoCo", "NoLoCo"}
        assert seconds.index[-1] == "DDP + PowerSGD hook rank 1"


def test_the_table_on_text_names_the_methods_that_it_lacks(
    built: tuple[Any, ...], study: SpeedStudy
) -> None:
    text = built[0]
    scored = read_experiment(SHIPPED.parent / "reference/gpt_text_methods").rows
    timed = set(built[1]["text_steps"]["label"])
    missing = [short_label(row) for row in scored if short_label(row) not in timed]
    assert f"; {' and '.join(missing)} were not timed." in text


def test_a_crowded_step_has_a_word_in_place_of_a_number(study: SpeedStudy) -> None:
    shown = shown_steps(study.timed_steps)
    crowded = shown[shown["crowded"]]
    assert len(crowded)
    for workload, steps in shown.groupby("workload"):
        table = steps_table(steps)
        of_workload = crowded[crowded["workload"] == workload]
        assert (table == "crowded").sum().sum() == len(of_workload)


def test_every_figure_can_be_read(built: tuple[Any, ...]) -> None:
    figures = built[2]
    assert set(figures) == {"speedups", "loss_and_step"}
    assert {name: faults_of(figure) for name, figure in figures.items()} == {
        name: [] for name in figures
    }


def test_the_shipped_report_is_of_the_shipped_records(built: tuple[Any, ...]) -> None:
    """But for what grows with every session of scored methods, which stand in a folder of their
    own."""
    shipped, now = (
        re.sub(
            r"## Accuracy drop and step time.*?(?=\n## )|(?m:^- (commits|command|left out).*$)",
            "",
            text,
            flags=re.DOTALL,
        )
        for text in ((SHIPPED / "report.md").read_text(), built[0])
    )
    assert shipped == now
    assert "## Other networks" in now


def test_a_report_can_be_built_of_whatever_there_is(tmp_path: Path) -> None:
    def report_of(
        name: str, *timings: dict[str, Any], sweeps: Sequence[dict[str, Any]] = ()
    ) -> Path:
        study = read_study(write_study(tmp_path / name, sweeps, timings))
        return build_speed_report(study, [], tmp_path / name)

    empty = report_of("empty")
    assert "Nothing can be said yet" in empty.read_text()
    assert empty.with_suffix(".pdf").exists()
    assert "Nothing can be said yet" in report_of("unswept", timing(2e9)).read_text()
    cells = read_study(tmp_path / "unswept").timed_steps
    assert cells["predicted_seconds"].isna().all()
    assert not math.isnan(cells["seconds"].iloc[0])
    first, again = (
        report_of(
            name, timing(100e6, "measured", 1.0), sweeps=[sweep(100e6)]
        ).read_text()
        for name in ("one", "two")
    )
    assert "Measured milliseconds of a step" in first
    assert "Emulated" not in first
    assert first == again


def test_mistakes_are_sentences(study: SpeedStudy, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no study.json"):
        read_study(tmp_path)
    folder = write_study(tmp_path / "mixed", [sweep(100e6)], [timing(100e6)])
    record = json.loads((folder / "timing-0.json").read_text())
    record["attempt"]["host"] = "elsewhere"
    (folder / "timing-0.json").write_text(json.dumps(record))
    with pytest.raises(
        RecordError, match=r"timed on another machine than sweep-0\.json"
    ):
        read_study(folder)


def test_consecutive_steps_and_wide_areas_have_tables_by_latency_and_by_who_is_slow(
    tmp_path: Path,
) -> None:
    folder = write_study(tmp_path, [sweep(100e6)], [timing(20 * 100e6)])
    cases = [
        (0.02, None),
        (0.0, {"who": "in turn", "factor": 3.0}),
        (0.0, None),
        (0.0, {"who": "one", "factor": 1.5}),
    ]
    for number, (latency, slow) in enumerate(cases):
        record = timing(1e8, dilation=1.0) | {"stragglers": slow}
        record["fabric"] |= {"latency_seconds": latency, "jitter_seconds": latency / 2}
        for cell in record["cells"]:
            cell["seconds"] = [0.1 + number] * 2
        if slow is None:
            (folder / f"wide-{number}.json").write_text(json.dumps(record))
        for cell in record["cells"]:
            cell["kind"] = "consecutive"
        (folder / f"consecutive-{number}.json").write_text(json.dumps(record))
    context, frames, _ = contents(read_study(folder), [])
    wide = context["wide"].table
    assert list(wide.columns) == ["label", "0 ms", "20 to 30 ms"]
    assert len(frames["wide_steps"]) == 2 * len(wide)
    # Steps that all took the same time: the ends of the interval are the mean.
    assert set(wide["0 ms"]) == {"2,100 (2,100 to 2,100)"}
    heads = ["0 ms", "20 to 30 ms", "one 1.5x", "in turn 3x"]
    row = context["row"].table
    assert list(row.columns) == ["label", *heads]
    cells = row[heads].iloc[0]
    means = [cell.partition(" (")[0] for cell in cells]
    assert means == ["2,100", "100", "3,100", "1,100"]
    assert len(frames["consecutive_steps"]) == 4 * len(row)
    text = markdown_of("speed.md.j2", context)
    assert "## Slow workers" in text
    assert "## Links with latency" in text
