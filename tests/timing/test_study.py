"""Studies: what is timed is what is scored, what this machine can do of it, and studies that
torchrun makes."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from cser_bench.harness.plan.plan import plan_experiment
from cser_bench.harness.records.store import read_record
from cser_bench.harness.records.timings import (
    Message,
    Sweep,
    TimedMethod,
    TimedSteps,
    Timing,
    TimingStudy,
)
from cser_bench.harness.timing import study
from cser_bench.harness.timing.links import LabTopology
from cser_bench.harness.timing.methods import (
    MAIN,
    METHODS,
    scored_methods,
    table_methods,
)
from cser_bench.harness.timing.session import WANTED, Session, steps_to_time
from cser_bench.harness.timing.study import (
    TimingJob,
    add_to_study,
    run_study,
    text,
    wide,
)
from cser_bench.harness.timing.sweep import fabric
from cser_bench.harness.timing.workloads import DATA, gradients_of, workload
from cser_bench.report.speed.workload_model import read_study
from tests.harness.support import CommandLine

RESULTS = Path(__file__).parents[2] / "results"
MODEL_BYTES = 102_228_128
MOST = 2e9
SCORED_WORKERS = DATA["scored"]["num_workers"]
SCORED_LINKS = DATA["scored"]["links"]


@pytest.fixture(scope="module")
def scored() -> dict[str, TimedMethod]:
    return scored_methods(RESULTS)


def test_every_row_of_the_regime_and_of_the_main_ratio_is_timed_as_it_is(
    scored: dict[str, TimedMethod],
) -> None:
    timed = {
        row: (method.algorithm, method.settings, method.momentum)
        for name, method in scored.items()
        for row in method.rows
        if not name.startswith("ddp")
    }
    for run in plan_experiment(MAIN, RESULTS).runs:
        if run.row.endswith("-96") and "~" not in run.row:
            config = run.config
            table = config.settings.table
            expected = (config.algorithm, table, config.momentum)
            assert timed.pop(f"{MAIN}/{run.row}", expected) == expected
    left = {row.partition("/")[2] for row in timed}
    assert {"sgd", "alone", "final_average", "dpsgd", "powersgd_rank_1"} <= left, (
        "the bounds, and who has no ratio 96"
    )
    others = ("-12", "-384", "-1536")
    assert not any(row.endswith(others) for row in left)


def test_what_the_experiment_on_text_scores_is_timed_with_its_local_steps_and_as_early_as_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(RESULTS.parent)
    at_once, far = text(tmp_path, [])
    latencies = [each.fabric.latency_seconds for each in (at_once, far)]
    assert latencies == [0.0, 20e-3]
    assert at_once.methods == far.methods
    configs = {
        run.row: run.config for run in plan_experiment("gpt_text_methods", RESULTS).runs
    }
    steps = {
        row: (config.algorithm, config.settings.table, config.local_step)
        for row, config in configs.items()
    }
    timed = {
        each.name: (each.algorithm, each.settings, each.local_step)
        for each in at_once.methods
    }
    assert timed.pop("ddp") == ("ddp", {}, "adamw")
    assert steps.pop("qsr-64")
    assert timed == steps
    assert all(each.overlap for each in at_once.methods)
    periods = {each.name: each.period for each in at_once.methods}
    assert (periods["adamw"], periods["streaming-64"], periods["moments-64"]) == (
        1,
        16,
        math.lcm(96, 288, 576),
    )


def test_links_far_apart_have_four_latencies_and_one_that_varies(
    tmp_path: Path,
) -> None:
    places = {each.name: each.fabric for each in wide(tmp_path, ["ddp"])}
    assert len(places) == 5
    rates = {each.bits_per_second for each in places.values()}
    assert rates == {100e6}
    varies = places.pop("wide-100mbps-5to10ms")
    assert [varies.latency_seconds, varies.jitter_seconds, varies.latency] == [
        5e-3,
        5e-3,
        "5 to 10 ms",
    ]
    assert [each.latency for each in places.values()] == [
        "0 ms",
        "5 ms",
        "20 ms",
        "80 ms",
    ]
    assert not any(each.jitter_seconds for each in places.values())


def sending(method: TimedMethod, *sent: tuple[int, int]) -> TimedMethod:
    """The method with messages of so many bytes, each once in so many steps."""
    messages = [
        Message(collective="all_reduce", payload_bytes=size, every=every, ready=1.0)
        for size, every in sent
    ]
    return method.model_copy(update={"messages": messages})


def cells(method: TimedMethod) -> list[TimedSteps]:
    """Those of a session of scored methods, where this machine's links carry so much in all."""
    load = workload("resnet50_v100", "cpu")
    network = fabric(LabTopology(SCORED_WORKERS, 1, 1e9))
    place = {
        "links": SCORED_LINKS,
        "fastest": MOST / SCORED_WORKERS,
        "dilates_each": True,
    }
    return steps_to_time(
        Session("scored-1", load, gradients_of(load.name), [method], network, **place),
        method,
    )


def test_each_kind_of_step_is_timed_on_each_link_and_what_sends_nothing_once(
    scored: dict[str, TimedMethod],
) -> None:
    local_sgd = sending(scored["local_sgd-96"], (MODEL_BYTES, 96))
    local = cells(local_sgd)
    assert [(cell.kind, cell.bits_per_second, cell.share) for cell in local] == [
        ("ordinary", None, 95 / 96),
        *(("synchronising", link, 1 / 96) for link in SCORED_LINKS),
    ]
    mcser = sending(scored["mcser-96"], (10**6, 1), (10**7, 24))
    both = cells(mcser)
    assert [(cell.kind, cell.bits_per_second) for cell in both] == [
        (kind, link) for kind in ("ordinary", "synchronising") for link in SCORED_LINKS
    ]


def test_links_are_slowed_down_as_far_as_this_machine_needs_and_small_messages_further() -> (
    None
):
    large, small = (
        cells(sending(METHODS["all_reduce"], (size, 1))) for size in (MODEL_BYTES, 1000)
    )
    for cell in (*large, *small):
        rate = cell.bits_per_second
        assert rate is not None
        assert SCORED_WORKERS * rate / cell.dilation <= MOST * (1 + 1e-9)
    for one, other in zip(large, small, strict=True):
        assert one.dilation <= other.dilation
    powersgd = sending(METHODS["powersgd_1"], (1000, 1))
    behind = cells(powersgd)
    assert [cell.dilation for cell in behind] == [
        max(WANTED[True][1], SCORED_WORKERS * link / MOST) for link in SCORED_LINKS
    ]


def test_what_the_machine_cannot_do_or_has_no_time_for_is_left_out_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine of 2 Gb/s on which nothing takes time. Seen are timings, their links' rate and the
    fastest possible."""
    seen: list[tuple[str, float | None, float]] = []

    @contextmanager
    def lab(topology: LabTopology) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(topology=topology)

    def record(session: Session, folder: Path) -> None:
        seen.append(
            (session.workload.name, session.fabric.bits_per_second, session.fastest)
        )

    jobs = [
        TimingJob("resnet50_v100", 8, 1, rate, dilation, ["all"])
        for rate, dilation in ((10e9, 1), (10e9, 128), (1e12, 1))
    ]
    for name, stand_in in {
        "ceiling_bits_per_second": lambda _: MOST / study.SHARE_OF_CEILING,
        "lab": lab,
        "connected": lambda lab: nullcontext(),
        "sweep_lab": lambda lab, seconds: None,
        "write_record": lambda path, record: None,
        "JOBS": jobs,
        "record": record,
    }.items():
        monkeypatch.setattr(study, name, stand_in)
    found = run_study(tmp_path, 60)
    assert found.sweeps == ["sweep-8x1-78.125mbps.json", "sweep-8x1-250mbps.json"]
    # The same links slowed down twice have a record each.
    name = "timing-resnet50_v100-8x1-10000mbps"
    assert found.timings == [f"{name}.json", f"{name}-slowed-128.json"]
    assert seen == [
        ("resnet50_v100", 250e6, 250e6),
        ("resnet50_v100", 10e9 / 128, 250e6),
    ]
    [slow] = found.left_out
    assert "8x1 workers at 1000 Gb/s" in slow.what
    assert "slowed down 4000 times" in slow.why
    assert (
        "minutes given to the study were over" in run_study(tmp_path, 0).left_out[0].why
    )


# Under a launcher


SHIPPED = Path(__file__).parents[2] / "results/speedups"
VARIABLES = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
)


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that what is set in a test is undone after it
        monkeypatch.delenv(name)


def test_a_single_process_is_told_how_to_start_several_and_unknown_names_are_refused(
    cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "torchrun" in cli.refused("time")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert "'sdg'" in cli.refused("time", "--methods", "sdg")
    assert "resnet50_v100" in cli.refused("time", "--workload", "resnet")


@pytest.mark.whole
def test_torchrun_makes_a_study_that_can_be_reported(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    time = [
        "-m",
        "harness",
        "time",
        "--workload",
        "fashion_mnist",
        "--visits",
        "1",
        "--steps",
        "1",
    ]
    methods = ["--methods", "ddp", "mcser", "--output", str(folder)]
    done = subprocess.run(
        [sys.executable, *start, *time, *methods],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    study = read_study(folder)
    timed = study.timings[0].methods
    assert [method.name for method in timed] == ["ddp", "mcser"]
    assert study.timings[0].basis == "measured"
    # The network was swept, so every timed step has a prediction of the model beside it.
    assert len(study.timed_steps) == 2
    assert study.timed_steps["predicted_seconds"].notna().all()


def test_another_workload_joins_the_study(tmp_path: Path) -> None:
    sweep = read_record(SHIPPED / "sweep-8x1-0.625mbps.json", Sweep)
    small = read_record(SHIPPED / "timing-fashion_mnist-8x1-10mbps.json", Timing)
    large = read_record(SHIPPED / "timing-cmudict-8x1-1000mbps.json", Timing)
    for timing in (small, large, small):
        add_to_study(tmp_path, sweep, timing)
    study = read_record(tmp_path / "study.json", TimingStudy)
    assert study.sweeps == ["sweep.json"]
    assert study.timings == ["timing-fashion_mnist.json", "timing-cmudict.json"]
    assert read_record(tmp_path / "timing-cmudict.json", Timing) == large


def test_the_first_table_is_timed_at_its_settings_and_hooks_stand_for_what_equals_them() -> (
    None
):
    timed = table_methods(RESULTS, "table_cnn")
    of_rows = {row: method for method in timed.values() for row in method.rows}
    for run in plan_experiment("table_cnn", RESULTS).runs:
        if "@" in run.row or run.row == "alone":
            continue
        method = of_rows[f"table_cnn/{run.row}"]
        hook = {"sgd": "ddp", "fp16": "ddp_fp16", "powersgd": "ddp_powersgd"}.get(
            run.row
        )
        assert method.algorithm == (hook or run.config.algorithm)
        assert method.settings == run.config.settings.table
    assert len(of_rows) == len(timed) == 9
    assert all(method.overlap for method in timed.values())
