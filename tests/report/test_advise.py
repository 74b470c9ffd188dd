"""Advice for one's own job: needed efficiencies by hand, measured ones from made-up records, and
what the command prints."""

from __future__ import annotations

import io
import json
import math
import re
from contextlib import redirect_stdout
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import fmean, median
from typing import Any

import pytest

from cser_bench.__main__ import main
from cser_bench.harness.errors import UsageError
from cser_bench.harness.records.packs import NAME, Files, read_pack, render_pack
from cser_bench.harness.records.shipped import SHIPPED
from cser_bench.harness.spec.run import RunConfig
from cser_bench.harness.spec.run import run_id as run_id_of
from cser_bench.report.advice import runs
from cser_bench.report.advice.advise import advice
from cser_bench.report.advice.measured import (
    Efficiency,
    efficiencies_of,
    measured_in,
    nearest,
)
from cser_bench.report.advice.needs import (
    DDP_LABEL,
    FP16_HOOK_LABEL,
    MethodInJob,
    methods_in_job,
    traffic_share,
)
from cser_bench.report.advice.runs import Method, experiments_on, methods_run
from cser_bench.report.collection import Collection, collection_of
from cser_bench.report.frame import Frames, read_frames
from cser_bench.report.speed.fitting import network_on
from cser_bench.report.speed.job import (
    Sending,
    TrainingJob,
    ddp_seconds,
    method_seconds,
    sendings_of,
)
from cser_bench.report.speed.two_stages import two_stage_factor
from cser_bench.report.speed.workload_model import read_study
from cser_bench.report.wording import NONE
from tests.own_runs import begin

RESNET50 = TrainingJob(25_600_000, 450_000, 8, 1, 27e-3, 10e9)
README_JOB = (
    "--parameters 25.6M --steps 450000 --workers 8 --compute-ms 27 --bandwidth 10Gb/s"
)
ALONE = ("--results", "no results of one's own")
HERE = Path(__file__).parent
GOLDEN = HERE / "advice_resnet50.txt"
SPEEDUPS = HERE.parents[1] / "results/speedups"


@pytest.fixture(scope="module")
def frames() -> Frames:
    return read_frames(SHIPPED / "reference" / "resnet_regime")


def made_method(frames: Frames, *sendings: Sending, **others: Any) -> Method:
    fields = {"key": "made", "label": "made", "setting": "H 4", "drop": "0"}
    fields |= {"num_runs": 1, "is_fp16_hook": False} | others
    return Method(sendings=sendings, frames=frames, **fields)


# What is needed


def test_a_step_is_the_passes_and_the_messages_by_hand() -> None:
    job = TrainingJob(1_000_000, 100, 4, 1, 30e-3, 1e9, latency_seconds=1e-3)
    in_ring = 2 * 3 * (1e-3 + 4e6 / 4 * 8 / 1e9)
    gathered = 3 * (1e-3 + 0.5 * 4e6 * 8 / 1e9)
    assert method_seconds(job, [Sending(1.0, 0.25, "all_reduce")]) == pytest.approx(
        30e-3 + in_ring / 4
    )
    assert method_seconds(job, [Sending(0.5, 1.0, "all_gather")]) == pytest.approx(
        30e-3 + gathered
    )
    # One bucket holds it all
    assert ddp_seconds(job, 4) == pytest.approx(30e-3 + in_ring)
    # In two stages a machine's four workers send their messages each, where a ring would enter and
    # leave it once.
    # So much longer than its bytes a message in two stages was timed to take.
    factor = two_stage_factor()
    assert method_seconds(job, [Sending(1.0, 1.0, "two_stages")]) == pytest.approx(
        30e-3 + factor * in_ring
    )
    two = TrainingJob(1_000_000, 100, 2, 4, 30e-3, 1e9, 1e12, latency_seconds=0.0)
    four_to_four = 2 * 4 * 4 * 4e6 / 8 * 8 / 1e9
    assert method_seconds(two, [Sending(1.0, 1.0, "two_stages")]) == pytest.approx(
        30e-3 + factor * four_to_four
    )
    # Two messages of a model to neighbours on a ring, or one to a peer: one hop, and as many models
    # on the link.
    on_a_ring = Sending(2.0, 1.0, "exchange")
    to_a_peer = Sending(1.0, 1.0, "exchange", one_peer=True)
    assert method_seconds(job, [on_a_ring]) == pytest.approx(
        30e-3 + 1e-3 + 2 * 4e6 * 8 / 1e9
    )
    assert method_seconds(job, [to_a_peer]) == pytest.approx(
        30e-3 + 1e-3 + 4e6 * 8 / 1e9
    )


@pytest.fixture(scope="module")
def session() -> dict[str, Any]:
    """The session of README's table on images, as it lies in its file."""
    path = SHIPPED / "scored_speedups" / "table-1.json"
    return dict(json.loads(path.read_text()))


def every_step(session: dict[str, Any], gbits: float, method: str) -> float:
    """Mean seconds of a method's steps that send, by the clock."""
    [cell] = [
        cell
        for cell in session["cells"]
        if cell["method"] == method and cell["bits_per_second"] == gbits * 1e9
    ]
    return fmean(cell["seconds"])


@pytest.mark.parametrize("gbits", [1, 10])
@pytest.mark.parametrize("interval", [1, 3])
def test_a_step_in_two_stages_is_as_long_as_by_the_clock(
    session: dict[str, Any], gbits: float, interval: int
) -> None:
    """EF 4-bit on ResNet-50: a message of 13.18 MB, for every number half a byte and a block's scale."""
    workload = session["workload"]
    passes = workload["forward_seconds"] + workload["backward_seconds"]
    size = workload["num_parameters"]
    [timed] = [each for each in session["methods"] if each["name"] == "ef_4bit"]
    [message] = timed["messages"]
    models = message["payload_bytes"] / (4 * size)
    job = TrainingJob(size, 1, 8, 1, passes, gbits * 1e9)
    sending = Sending(models, 1 / interval, "two_stages")
    sent = every_step(session, gbits, "ef_4bit")
    by_clock = passes + (sent - passes) / interval
    assert method_seconds(job, [sending]) == pytest.approx(by_clock, rel=0.02)


def test_a_message_in_two_stages_takes_longer_than_its_bytes_by_what_was_timed(
    session: dict[str, Any],
) -> None:
    """14 hops of 0.05 ms, and seven eighths of the message to others in each of two stages."""
    workload = session["workload"]
    passes = workload["forward_seconds"] + workload["backward_seconds"]
    factors = []
    for method in ("ef_4bit", "mcser_4bit"):
        [timed] = [each for each in session["methods"] if each["name"] == method]
        num_bytes = timed["messages"][0]["payload_bytes"]
        for gbits in (1, 10, 25):
            alone = 14 * 50e-6 + 2 * 7 / 8 * num_bytes * 8 / (gbits * 1e9)
            factors.append((every_step(session, gbits, method) - passes) / alone)
    assert two_stage_factor() == pytest.approx(median(factors))
    assert two_stage_factor() == pytest.approx(1.66, abs=0.005)
    slow = [*factors[:2], *factors[3:5]]
    fast = [factors[2], factors[5]]
    page = (HERE.parents[1] / "docs" / "speedups.md").read_text()
    said = (
        f"takes {two_stage_factor():.2f} times as long",
        f"took {min(slow):.2f} to {max(slow):.2f} times as long",
        f"{min(fast):.2f} to {max(fast):.2f} times at 25 Gb/s",
    )
    for words in said:
        assert words in page


def test_models_sent_are_those_of_the_plan() -> None:
    frames = read_frames(SHIPPED / "reference" / "fashion_mnist_long")
    for name in ("csea-96", "local_sgd-96", "mcser-96", "dpsgd", "choco-96"):
        row = frames.by_row.loc[name]
        sent = row["num_steps"] * math.fsum(
            s.models * s.share_of_steps for s in sendings_of(frames, row)
        )
        assert sent + row["final_exchange"] == pytest.approx(
            row["models_sent"], rel=1e-3
        ), name
    assert sendings_of(frames, frames.by_row.loc["alone"]) == []
    assert {
        s.collective for s in sendings_of(frames, frames.by_row.loc["mcser-96"])
    } == {"all_reduce", "all_gather"}
    assert [s.one_peer for s in sendings_of(frames, frames.by_row.loc["dpsgd"])] == [
        True
    ]


def test_steps_are_those_of_the_study_by_the_clock() -> None:
    """ResNet-50 on a V100: what follows the backward pass, and DDP's buckets, on every network that
    was timed."""
    study = read_study(SPEEDUPS)
    model = study.models["resnet50_v100"]
    size = model.workload.num_parameters
    errors = []
    is_resnet50 = study.timed_steps["workload"] == "resnet50_v100"
    for line in study.timed_steps[is_resnet50].to_dict("records"):
        timing = study.timings[line["timing"]]
        method = model.methods[line["method"]]
        # On machines of several workers the study had a flat ring, and the advice goes by
        # hierarchy. Whole models to neighbours took twice as long as their bytes need, which is the
        # lab's backend and no job's network.
        is_hook = method.overlap and method.name not in ("ddp", "ddp_fp16")
        if line["workers_per_machine"] > 1 or is_hook or method.algorithm == "dpsgd":
            continue
        network = network_on(timing.fabric, study.fits)
        assert network is not None
        latency = network.links["all_reduce"].between.alpha / line["dilation"]
        job = TrainingJob(
            size,
            1,
            8,
            1,
            model.workload.compute_seconds,
            line["bits_per_second"],
            0.0,
            latency,
        )
        sent = [
            Sending(
                m.payload_bytes / (4 * size),
                1 / m.every,
                m.collective,
                len(m.rounds) > 1,
            )
            for m in method.messages
        ]
        number = 2 if method.name == "ddp_fp16" else 4
        seconds = (
            ddp_seconds(job, number) if method.overlap else method_seconds(job, sent)
        )
        errors.append(abs(seconds / line["seconds"] - 1))
    assert len(errors) >= 30
    assert sum(error <= 0.1 for error in errors) >= 0.9 * len(errors)
    assert max(errors) < 0.25


def test_pairs_meet_one_other_and_four_bits_travel_in_two_stages() -> None:
    frames = read_frames(SHIPPED / "reference" / "gpt_text_methods")
    ways = {
        name: sendings_of(frames, frames.row(name))
        for name in ("noloco-37", "streaming_4-8", "cser_pl_4-8")
    }
    assert [(each.collective, each.one_peer) for each in ways["noloco-37"]] == [
        ("exchange", True)
    ]
    assert {
        each.collective
        for name in ("streaming_4-8", "cser_pl_4-8")
        for each in ways[name]
    } == {"two_stages"}
    assert ways["streaming_4-8"][0].models == pytest.approx(
        ways["cser_pl_4-8"][0].models / 2
    ), "half of it at a time"


def test_what_is_needed_between_two_ranks_with_one_message_by_hand(
    frames: Frames,
) -> None:
    """A megaparameter is one bucket, which is full when the backward pass ends."""
    job = TrainingJob(1_000_000, 100, 2, 1, 30e-3, 1e9, latency_seconds=1e-3)
    # In a ring of two each sends a half of 4 MB there and a half back, 16 ms each at 1 Gb/s.
    in_fp32 = 30e-3 + 2 * (1e-3 + 16e-3)
    in_fp16 = 30e-3 + 2 * (1e-3 + 8e-3)
    every_fourth = 30e-3 + 2 * (1e-3 + 16e-3) / 4
    local = made_method(frames, Sending(1.0, 0.25, "all_reduce"))
    found = {line.label: line for line in methods_in_job(job, [local], [])}
    assert found["made"].over_hook == pytest.approx(every_fourth / in_fp16)
    assert found["made"].over_ddp == pytest.approx(every_fourth / in_fp32)
    assert found[DDP_LABEL].over_hook == pytest.approx(in_fp32 / in_fp16)
    assert found[FP16_HOOK_LABEL].over_hook == 1
    assert found[FP16_HOOK_LABEL].over_ddp < 1
    labels = [line.label for line in found.values()]
    assert labels == ["made", FP16_HOOK_LABEL, DDP_LABEL]


def test_the_hook_that_was_run_takes_the_place_of_the_one_that_was_not(
    frames: Frames,
) -> None:
    hook = made_method(
        frames, Sending(0.5, 1.0, "all_reduce"), is_fp16_hook=True, drop="0.01"
    )
    lines = methods_in_job(RESNET50, [hook], [])
    assert [line.label for line in lines] == ["made", DDP_LABEL]
    assert lines[0].over_hook == 1, "its buckets are sent during the backward pass"
    assert lines[0].method is hook
    assert not lines[0].is_heavy


@pytest.mark.parametrize(
    ("num_workers", "share"), [(2, 1 / 96), (8, 1 / 24), (16, 1 / 12)]
)
def test_gathered_messages_are_a_larger_share_between_more_workers(
    num_workers: int, share: float
) -> None:
    """TopK(192) sends two numbers of 192, and a ring passes all workers' messages on."""
    top_k = [Sending(2 / 192, 1.0, "all_gather")]
    assert traffic_share(top_k, num_workers) == pytest.approx(share)
    local = [Sending(1.0, 1 / 24, "all_reduce")]
    assert traffic_share(local, num_workers) == pytest.approx(1 / 24)
    to_a_neighbour = [Sending(1.0, 1.0, "exchange")]
    ring = 2 * (num_workers - 1) / num_workers
    assert traffic_share(to_a_neighbour, num_workers) == pytest.approx(1 / ring)


@pytest.mark.parametrize(
    ("traffic", "is_heavy"), [(0.5, False), (0.5 + 1e-9, False), (0.51, True)]
)
def test_more_traffic_than_with_the_hook_is_marked(
    traffic: float, is_heavy: bool
) -> None:
    assert MethodInJob("made", "H 4", traffic, 1.0, 1.0, 1.0).is_heavy is is_heavy
    assert not MethodInJob(DDP_LABEL, NONE, 1.0, 1.0, 1.0, 1.0).is_heavy


def test_a_setting_that_several_experiments_ran_has_one_row() -> None:
    collection = collection_of(None)
    experiments = experiments_on("residual", collection)
    names = {each.experiment.name for each in experiments}
    assert names == {"resnet_regime", "study_resnet_loads", "resnet_methods"}
    methods = methods_run(experiments)
    assert len({method.key for method in methods}) == len(methods)
    labels = [(method.label, method.setting) for method in methods]
    assert labels.count(("local SGD", "H 24")) == 1
    assert ("local SGD", "H 96") in labels
    assert not {"SGD", "alone"} & {method.label for method in methods}


# What was measured


def efficiency(
    num_parameters: int,
    num_steps: int,
    kind: str = "estimate",
    value: float = 0.5,
    num_runs: int = 3,
) -> Efficiency:
    line = {"num_parameters": num_parameters, "num_steps": num_steps, "kind": kind}
    line |= {
        "efficiency": value,
        "low": 0.4,
        "high": 0.625,
        "reason": "curve too coarse there",
    }
    line["num_runs"] = num_runs
    return Efficiency("made", "made", "network", 0.04, line)


@pytest.mark.parametrize(
    ("num_parameters", "num_steps", "is_near"),
    [
        (1000, 1000, True),
        (4000, 250, True),
        (250, 4000, True),
        (4001, 1000, False),
        (1000, 4001, False),
        (249, 1000, False),
        (1000, 249, False),
    ],
)
def test_a_size_was_measured_within_a_factor_of_four(
    num_parameters: int, num_steps: int, is_near: bool
) -> None:
    job = replace(RESNET50, num_parameters=1000, num_steps=1000)
    assert efficiency(num_parameters, num_steps).is_near(job) is is_near


def test_a_net_speedup_is_the_ratio_of_step_times_times_the_efficiency() -> None:
    """A step in 0.4 of the hook's time, worth 0.5: 1.25 times as fast, in twice the steps."""
    found = efficiency(1000, 1000)
    assert found.net_speedup(0.4, 1.0) == "1.25x (1.00x to 1.56x)"
    assert found.planned_steps == "2.00x"
    bound = efficiency(1000, 1000, "at most", 0.2)
    assert bound.net_speedup(0.4, 1.0) == "at most 0.50x"
    assert bound.planned_steps == "at least 5.00x"
    assert efficiency(1000, 1000, "at least", 0.8).planned_steps == "at most 1.25x"


def test_the_nearest_efficiency_of_a_method_counts_and_a_number_before_a_dash() -> None:
    job = replace(RESNET50, num_parameters=1000, num_steps=1000)
    far = efficiency(9000, 1000)
    near = efficiency(2000, 500)
    unknown = efficiency(1000, 999, "none")
    assert nearest([far, near, unknown], "made", job) is near
    assert nearest([unknown], "made", job) is unknown
    of_more_runs = efficiency(2000, 500, num_runs=5)
    assert nearest([near, of_more_runs], "made", job) is of_more_runs
    assert nearest([far, near], "another", job) is None


LENGTHS = (590, 840, 1170, 1670, 2340, 3340, 3900, 4680)
"""About T/8, T/5.6, T/4, T/2.8, T/2, T/1.4, T/1.2 and T; whole steps in each of ten epochs."""
WORTH = 0.5
"""Efficiency of local SGD's steps, as the curve is made up."""


def made_curve(results: Path) -> Path:
    """Records of the residual network, and a curve of made-up losses; return the latter's folder.

    The baseline's loss is linear in ln t. It reaches local SGD's mean in half its steps.
    """
    own = begin(results, "resnet_regime", 65)
    plan = json.loads((own / "experiment.json").read_text())
    (own / "experiment.json").write_text(json.dumps(plan | {"curve": "curve_made"}))
    known = read_frames(SHIPPED / "reference" / "resnet_regime").runs
    means = known.groupby("row")["test_loss"].mean()
    slope = (means["local_sgd-24"] - means["sgd"]) / math.log(1 / WORTH)

    pack = read_pack(own)
    baseline = next(row for row in plan["rows"] if row["row"] == "sgd")
    made: dict[str, Files] = {}
    rows = []
    for steps in LENGTHS:
        loss = means["sgd"] + slope * math.log(LENGTHS[-1] / steps)
        row = {
            **baseline,
            "row": f"sgd@s{steps}",
            "base": "sgd",
            "num_steps": steps,
            "runs": {},
        }
        if steps == LENGTHS[-1]:
            row |= {"row": "sgd", "base": None}
        for seed, apart in ((1, -0.0005), (2, 0.0), (3, 0.0005)):
            files = deepcopy(pack[baseline["runs"][str(seed)]])
            # Any setting of its own gives a run an id of its own.
            files["run"]["config"]["learning_rate"] = steps / 1e4
            files["run"]["config"]["evaluation"]["num_scores"] = 1
            run_id = run_id_of(RunConfig.model_validate(files["run"]["config"]))
            files["run"] |= {
                "run_id": run_id,
                "row": row["row"],
                "experiment": "curve_made",
            }
            files["result"] |= {
                "run_id": run_id,
                "num_steps": steps,
                "test_loss": loss + apart,
            }
            files["events"] = [
                files["events"][-1] | {"step": steps, "test_loss": loss + apart}
            ]
            made[run_id] = files
            row["runs"][str(seed)] = run_id
        rows.append(row)
    chosen = plan["tuning"]["choices"]["sgd"]
    plan["tuning"]["choices"] = {row["row"]: chosen for row in rows}
    folder = results / "curve_made"
    folder.mkdir()
    nothing = {"name": "curve_made", "contrasts": [], "evidence": None, "floor": None}
    (folder / "experiment.json").write_text(json.dumps(plan | nothing | {"rows": rows}))
    (folder / NAME).write_text(render_pack("curve_made", made))
    return folder


def test_an_efficiency_is_found_from_the_records_of_a_curve(tmp_path: Path) -> None:
    made_curve(tmp_path)
    folders = (tmp_path / "curve_made", tmp_path / "resnet_regime")
    measured = measured_in(Collection(folders))
    assert {each.experiment.name for each in measured} == {
        "curve_made",
        "resnet_regime",
    }
    [own] = [each for each in measured if each.experiment.name == "resnet_regime"]
    methods = {method.label: method for method in methods_run([own])}
    found = nearest(efficiencies_of(measured), methods["local SGD"].key, RESNET50)
    assert found is not None
    assert found.experiment == "resnet_regime"
    assert found.line["score_name"] == "test_loss"
    assert found.line["efficiency"] == pytest.approx(WORTH, abs=1e-3)
    assert found.line["low"] < WORTH < found.line["high"]
    assert found.traffic == pytest.approx(1 / 24, rel=0.01)
    assert found.network == "residual network"


def test_no_experiment_without_a_curve_is_read_for_efficiencies() -> None:
    folder = SHIPPED / "reference" / "fashion_mnist_contrasts"
    assert measured_in(Collection((folder, SHIPPED / "speedups"))) == []


# What is printed


@cache
def printed_by(words: str, results: Path | None = None) -> str:
    """What the command prints, which several tests look at."""
    own = ALONE if results is None else ("--results", str(results))
    out = io.StringIO()
    with redirect_stdout(out):
        assert main(["advise", *words.split(), *own]) == 0
    return out.getvalue()


def cells_of(printed: str, method: str) -> list[str]:
    """Return the cells of a method's first line."""
    lines = [line for line in printed.splitlines() if line.startswith(f"{method}  ")]
    return re.split(r"\s{2,}", lines[0])[1:]


def test_the_command_of_readme_prints_the_golden_text() -> None:
    printed = printed_by(README_JOB)
    shown = "\n".join(f"    {line}".rstrip() for line in printed.splitlines())
    root = HERE.parents[1]
    # The environment that `make reproduce` makes, and does not enter.
    makefile = (root / "Makefile").read_text()
    assert (
        "VENV := .venv\nRUN := $(VENV)/bin/python\nHARNESS := $(RUN) -m harness"
        in makefile
    )
    command = f"    .venv/bin/python -m harness advise {README_JOB}"
    assert f"{command}\n\n{shown}" in (root / "README.md").read_text()
    again = f"python -m harness advise {README_JOB} --results none > {GOLDEN}"
    assert printed == GOLDEN.read_text(), f"where records that ship changed: {again}"


@pytest.mark.whole
def test_methods_of_the_first_table_are_shown_under_its_names_and_the_others_counted() -> (
    None
):
    printed = printed_by(README_JOB)
    everything = printed_by(f"{README_JOB} --all")
    assert cells_of(printed, "EF top-k: TopK(192)")[:2] == ["1/24", "33.3"]
    num_lines = [
        text.partition("\n\n")[0].count("\n") for text in (printed, everything)
    ]
    assert f"{num_lines[1] - num_lines[0]} more settings were run: --all." in printed
    assert "more settings" not in everything


@pytest.mark.whole
def test_a_net_speedup_is_given_near_what_was_measured_alone(tmp_path: Path) -> None:
    made_curve(tmp_path)
    far = printed_by(README_JOB, tmp_path)
    assert "net speed-up is given" in far
    assert "net speed-up  " not in far
    has, place = cells_of(far, "local SGD: H 24")[4:]
    assert has.startswith("0.50 (0.4")
    assert place == "residual network, 4,680 steps"
    job = README_JOB.replace("25.6M", "80000").replace("450000", "5000")
    # Short passes, as so small a network waits for little else.
    job = job.replace("--compute-ms 27", "--compute-ms 1")
    needed, _, rest = printed_by(job, tmp_path).partition("\n\n")
    over_hook = float(cells_of(needed, "local SGD: H 24")[2])
    speedup, plan = cells_of(rest, "local SGD: H 24")
    # What is printed has two decimals.
    assert float(speedup.split("x")[0]) == pytest.approx(WORTH / over_hook, abs=0.01)
    assert plan == "2.00x"


ORDER = "highest first"


def test_the_highest_efficiency_stands_first_and_ddp_last() -> None:
    printed = printed_by(README_JOB)
    assert ORDER in printed
    table, _, _ = printed.partition("\n\n")
    shown = [re.split(r"\s{2,}", line) for line in table.splitlines()[2:]]
    # A bound counts as the number that it names.
    has = [
        float(re.findall(r"[\d.]+", cells[5])[0])
        for cells in shown
        if re.search(r"\d", cells[5])
    ]
    assert len(has) == 8
    assert has == sorted(has, reverse=True)
    last = [cells[0] for cells in shown[len(has) :]]
    assert last == [FP16_HOOK_LABEL, DDP_LABEL]


@pytest.mark.parametrize(
    ("words", "is_nothing"),
    [
        (README_JOB.replace("--workers 8", "--layout 1x8"), True),
        (README_JOB.replace("10Gb/s", "1000Gb/s"), True),
        (README_JOB, False),
        # Inside it a machine's workers have slow links.
        (README_JOB.replace("--workers 8", "--layout 1x8 --inside 10Gb/s"), False),
    ],
)
def test_where_ddp_does_not_wait_there_is_nothing_to_gain(
    words: str, is_nothing: bool
) -> None:
    assert printed_by(words).startswith("Nothing to gain") is is_nothing


def test_on_machines_of_several_workers_it_says_whose_messages_cross_the_link() -> None:
    said = "their messages all cross the machine's link"
    on_two = printed_by(README_JOB.replace("--workers 8", "--layout 2x8"))
    assert said in on_two
    assert said not in printed_by(README_JOB)
    hook = float(cells_of(on_two, "DDP + 4-bit hook: 4 bits")[1])
    assert hook > float(cells_of(on_two, DDP_LABEL)[1])


def test_a_line_on_ones_own_records_stands_below_the_table(tmp_path: Path) -> None:
    begin(tmp_path, "resnet_regime", 0)
    printed = printed_by(README_JOB, tmp_path)
    assert printed.startswith("method  ")
    assert printed.splitlines()[-1].startswith("resnet_regime: left out ")


@pytest.mark.whole
def test_methods_of_another_optimiser_are_shown_by_its_network() -> None:
    printed = printed_by(f"{README_JOB} --network gpt")
    assert cells_of(printed, "local AdamW: H 8")[0] == "1/8.01"
    assert not re.search(r"^(local SGD|M-CSER|AdamW:|Muon)", printed, re.MULTILINE)


@pytest.mark.whole
def test_more_workers_than_top_k_is_good_for_are_warned_of() -> None:
    warning = "! More traffic than with DDP's fp16 hook."
    assert warning not in printed_by(README_JOB)
    job = README_JOB.replace("--workers 8", "--workers 128")
    printed = printed_by(f"{job} --all")
    assert warning in printed
    # TopK(48) between 128 workers: 127 of 24 parts on a link, where DDP has 2 x 127/128.
    assert cells_of(printed, "EF-SGD top-k: TopK(48)")[0] == "2.67 !"
    assert cells_of(printed, "local SGD: H 6")[0] == "1/6"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "--parameters many --workers 8 --bandwidth 10Gb/s",
            "'--parameters': must be a number above 0, as 25.6M",
        ),
        (
            "--parameters 1M --bandwidth 10Gb/s",
            "missing option '--workers' / '--layout'",
        ),
        ("--parameters 1M --workers 1 --bandwidth 10Gb/s", "one worker sends nothing"),
        ("--parameters 1M --layout 2by4 --bandwidth 10Gb/s", "not '2by4'"),
        ("--parameters 1M --layout 8x --bandwidth 10Gb/s", "as 2x4, not '8x'"),
        ("--parameters 25.6 --workers 8 --bandwidth 10Gb/s", "25.6M is 25.6 millions"),
        ("--parameters 1M --workers 8 --bandwidth 10", "with its unit, as 10Gb/s"),
        ("--parameters 1M --workers 8 --bandwidth 10GB/s", "a number of bits a second"),
        (
            "--parameters 1M --workers 8 --bandwidth 10Gb/s --network nobody",
            "give --network perceptron, residual, gpt",
        ),
        *(
            (
                f"--parameters 1M --workers 8 --bandwidth 10Gb/s {option}",
                f"no such option '{option.split()[0]}'",
            )
            for option in (
                "--margin 0.5",
                "--gap 5",
                "--map results",
                "--dollars-per-hour 24",
            )
        ),
    ],
)
def test_mistakes_are_one_sentence(
    words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(
        ["advise", *words.split(), *ALONE, "--steps", "1000", "--compute-ms", "27"]
    )
    assert code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_advice_without_records_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "SHIPPED", tmp_path / "nothing")
    with pytest.raises(UsageError, match="install the project again"):
        advice(RESNET50, "residual", collection_of(None))
