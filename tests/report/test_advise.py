"""Advice for one's own job: steps by hand and against the study, losses at lengths that the map did
not see."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cser_bench.harness.__main__ import main
from cser_bench.report.advice.advise import advise, folders_for
from cser_bench.report.advice.choice import trial_of
from cser_bench.report.advice.predictions import expected_losses
from cser_bench.report.frame import Frames, read_frames
from cser_bench.report.questions.evidence import evidence_of
from cser_bench.report.regime import losses_of, lost_frame, lost_rows
from cser_bench.report.speed.fitting import network_on
from cser_bench.report.speed.job import (
    Sending,
    TrainingJob,
    ddp_seconds,
    method_seconds,
    sendings_of,
)
from cser_bench.report.speed.workload_model import read_study
from cser_bench.report.statistics import against_baseline

RESNET50 = TrainingJob(25_600_000, 450_000, 8, 1, 27e-3, 10e9)
EVIDENCE = evidence_of(None)
MAP = folders_for("perceptron", RESNET50, EVIDENCE)[0]
ALONE = ("--results", "no results of one's own")
SPEEDUPS = Path(__file__).parents[2] / "results/speedups"


@pytest.fixture(scope="module")
def frames() -> Frames:
    return read_frames(MAP)


@pytest.fixture(scope="module")
def shares() -> pd.DataFrame:
    """Three methods on two kinds of network, by hand."""
    lost = {"error reset": (0.0, 0.04), "local steps": (0.01, 0.05), "DiLoCo": (0.0, 0.02)}
    lines = [
        (f"kind {n}", method, value)
        for method, both in lost.items()
        for n, value in enumerate(both)
    ]
    frame = pd.DataFrame(lines, columns=["network", "method", "share"])
    return frame.assign(low=frame["share"] - 0.01, high=frame["share"] + 0.01)


@pytest.fixture(scope="module")
def lost(frames: Frames) -> pd.DataFrame:
    return lost_frame(frames)


def test_a_step_is_the_passes_and_the_messages_by_hand() -> None:
    job = TrainingJob(1_000_000, 100, 4, 1, 30e-3, 1e9, latency_seconds=1e-3)
    in_ring = 2 * 3 * (1e-3 + 4e6 / 4 * 8 / 1e9)
    gathered = 3 * (1e-3 + 0.5 * 4e6 * 8 / 1e9)
    assert method_seconds(job, [Sending(1.0, 0.25, "all_reduce")]) == pytest.approx(
        30e-3 + in_ring / 4
    )
    assert method_seconds(job, [Sending(0.5, 1.0, "all_gather")]) == pytest.approx(30e-3 + gathered)
    assert ddp_seconds(job, 4) == pytest.approx(30e-3 + in_ring)  # one bucket holds it all
    # In two stages a machine's four workers send their messages each, where a ring would enter and
    # leave it once.
    assert method_seconds(job, [Sending(1.0, 1.0, "two_stages")]) == pytest.approx(30e-3 + in_ring)
    two = TrainingJob(1_000_000, 100, 2, 4, 30e-3, 1e9, 1e12, latency_seconds=0.0)
    four_to_four = 2 * 4 * 4 * 4e6 / 8 * 8 / 1e9
    assert method_seconds(two, [Sending(1.0, 1.0, "two_stages")]) == pytest.approx(
        30e-3 + four_to_four
    )
    # Two messages of a model to neighbours on a ring, or one to a peer: one hop, and as many models
    # on the link.
    on_a_ring, to_a_peer = (
        Sending(2.0, 1.0, "exchange"),
        Sending(1.0, 1.0, "exchange", one_peer=True),
    )
    assert method_seconds(job, [on_a_ring]) == pytest.approx(30e-3 + 1e-3 + 2 * 4e6 * 8 / 1e9)
    assert method_seconds(job, [to_a_peer]) == pytest.approx(30e-3 + 1e-3 + 4e6 * 8 / 1e9)


def test_models_sent_are_those_of_the_plan(frames: Frames) -> None:
    for name in ("csea-96", "local_sgd-96", "mcser-96", "dpsgd", "choco-96"):
        row = frames.by_row.loc[name]
        sent = row["num_steps"] * math.fsum(
            s.models * s.share_of_steps for s in sendings_of(frames, row)
        )
        assert sent + row["final_exchange"] == pytest.approx(row["models_sent"], rel=1e-3), name
    assert sendings_of(frames, frames.by_row.loc["alone"]) == []
    assert {s.collective for s in sendings_of(frames, frames.by_row.loc["mcser-96"])} == {
        "all_reduce",
        "all_gather",
    }
    assert [s.one_peer for s in sendings_of(frames, frames.by_row.loc["dpsgd"])] == [True]


def test_steps_are_those_of_the_study_by_the_clock() -> None:
    """ResNet-50 on a V100: what follows the backward pass, and DDP's buckets, on every network that
    was timed."""
    study = read_study(SPEEDUPS)
    model = study.models["resnet50_v100"]
    size, errors = model.workload.num_parameters, []
    for line in study.cells[study.cells["workload"] == "resnet50_v100"].to_dict("records"):
        timing, method = study.timings[line["timing"]], model.methods[line["method"]]
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
            size, 1, 8, 1, model.workload.compute_seconds, line["bits_per_second"], 0.0, latency
        )
        sent = [
            Sending(m.payload_bytes / (4 * size), 1 / m.every, m.collective, len(m.rounds) > 1)
            for m in method.messages
        ]
        number = 2 if method.name == "ddp_fp16" else 4
        seconds = ddp_seconds(job, number) if method.overlap else method_seconds(job, sent)
        errors.append(abs(seconds / line["seconds"] - 1))
    assert (
        len(errors) >= 30
        and sum(error <= 0.1 for error in errors) >= 0.9 * len(errors)
        and max(errors) < 0.25
    )


def test_rows_of_a_length_left_out_lie_in_the_interval(lost: pd.DataFrame) -> None:
    """A length in the middle predicted from the others, as for a job of such a length."""
    length = sorted(lost["num_steps"].unique())[-2]
    inside = []
    for _, group in lost.groupby("label"):
        known, unseen = group[group["num_steps"] != length], group[group["num_steps"] == length]
        if known["num_steps"].nunique() > 1 and len(unseen):
            found = expected_losses(known, unseen, "models sent")
            inside += (
                (found["low"] <= unseen["lost"]) & (unseen["lost"] <= found["high"])
            ).to_list()
    assert len(inside) >= 15 and sum(inside) >= 0.8 * len(inside), (sum(inside), len(inside))


def test_a_job_within_and_beyond_what_was_run(lost: pd.DataFrame) -> None:
    group = lost[lost["label"] == "M-CSER"]
    assert set(expected_losses(group, group, "steps and ratio")["beyond"]) == {1.0}
    far = group.assign(num_steps=group["num_steps"] * 8, models_sent=group["models_sent"] * 8)
    longest = far[far["num_steps"] == far["num_steps"].max()]
    assert expected_losses(group, longest, "steps and ratio")["beyond"].to_list() == pytest.approx(
        [8.0] * len(longest)
    )


def test_a_slow_link_asks_for_a_method_and_a_fast_one_for_ddp(
    frames: Frames, shares: pd.DataFrame
) -> None:
    slow = advise(RESNET50, [frames], shares)
    safe = slow.choice.safe
    assert slow.text.startswith(f"Safe: {safe['method']} at ratio")
    assert safe["basis"] == "curve" and -safe["low"] <= 0.005
    assert "times beyond what was run" in " ".join(slow.text.split())
    fast = TrainingJob(25_600_000, 450_000, 8, 1, 27e-3, 400e9, latency_seconds=5e-6)
    assert advise(fast, [frames], shares).text.startswith("Safe: DDP")


def test_no_slower_line_is_chosen_and_what_is_chosen_stands_as_it_says(
    frames: Frames, shares: pd.DataFrame
) -> None:
    advice = advise(RESNET50, [frames], shares.assign(share=10 * shares["share"]))
    lines, choice = advice.lines, advice.choice
    safe = lines[lines["standing"] == "safe"]
    assert (-safe["low"] <= 0.005).all()
    assert choice.safe["seconds"] <= 1.05 * safe["seconds"].min() or choice.safe == choice.base
    assert choice.trial is not None and choice.trial["standing"] == "trial"
    assert choice.trial["seconds"] * 1.05 < choice.safe["seconds"]
    assert -choice.trial["estimate"] <= 0.005 < -choice.trial["low"]
    faster = lines[1.05 * lines["seconds"] < choice.trial["seconds"]]
    assert not (faster["standing"] == "trial").any()


def test_a_trial_takes_the_seeds_that_show_its_margin(frames: Frames, shares: pd.DataFrame) -> None:
    choice = advise(RESNET50, [frames], shares.assign(share=10 * shares["share"])).choice
    assert choice.trial is not None
    exact = replace(choice, trial=choice.trial | {"estimate": 0.0, "deviation": 0.006})
    trial = trial_of(exact, 0.005, RESNET50.num_steps)
    assert trial is not None
    # By simulation: of so many runs of each, the share of tests at 5 % that reject a loss of 0.005.
    generator = np.random.default_rng(1)
    for num_seeds, least, most in ((trial.num_seeds, 0.78, 1.0), (trial.num_seeds - 1, 0.0, 0.8)):
        error = 0.006 / math.sqrt(num_seeds)
        means = error * generator.standard_normal(100_000)
        assert least <= (means - 1.645 * error > -0.005).mean() <= most
    hours = (choice.trial["seconds"] + choice.base["seconds"]) * RESNET50.num_steps / 3600
    assert trial.hours == pytest.approx(trial.num_seeds * hours)
    assert trial_of(replace(exact, trial=exact.trial | {"deviation": math.nan}), 0.005, 9) is None
    assert trial_of(replace(choice, trial=None), 0.005, 9) is None


def test_an_interval_is_widened_by_the_spread_between_kinds(lost: pd.DataFrame) -> None:
    group = lost[lost["label"] == "M-CSER"]
    own, wider = (expected_losses(group, group, "models sent", spread) for spread in (0.0, 0.1))
    half, wide = (each["high"] - each["share"] for each in (own, wider))
    assert (wide**2 - half**2).to_numpy() == pytest.approx((1.96 * 0.1) ** 2) and (
        own["share"] == wider["share"]
    ).all()


def printed_by(capsys: pytest.CaptureFixture[str], words: str) -> str:
    assert main(["advise", *words.split(), *ALONE]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert "\N{MINUS SIGN}" not in printed, "a gain says that it is one"
    return printed


def table_of(printed: str) -> list[str]:
    """The lines of a table, without those that a name goes on in."""
    [table] = [part for part in printed.split("\n\n") if "\n---" in part]
    return [line for line in table.splitlines()[2:] if not line.startswith(" ")]


def test_the_command_says_what_is_safe_and_what_a_trial_costs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = (
        "--parameters 25.6M --steps 450000 --layout 2x4 --compute-ms 27 --bandwidth 10Gb/s "
        "--dollars-per-hour 24 --network perceptron"
    )
    printed = printed_by(capsys, words)
    # The spread between kinds alone bounds no loss by half a point.
    assert printed.startswith("Safe: DDP") and "\nWorth a trial: " in printed
    assert "\nWhat a trial costs: " in printed and "$" in printed
    assert 1 < len(table_of(printed)) <= 5
    lines = table_of(printed_by(capsys, f"{words} --all"))
    recent = [line for line in lines if line.startswith(("Streaming", "M-CSER-PL, 4 bits"))]
    assert len(recent) == 3 and all(line.endswith("not known") for line in recent)


@pytest.mark.parametrize(
    ("job", "safe", "row"),
    [
        ("77594 --steps 4680 --bandwidth 10Mb/s", "EF-SGD top-k at ratio 96", "ef_topk-96"),
        ("413696 --steps 1922 --bandwidth 100Mb/s", "DDP", None),
    ],
)
def test_a_job_that_was_run_has_its_measured_losses(
    job: str, safe: str, row: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = printed_by(capsys, f"--parameters {job} --workers 8 --compute-ms 10")
    assert printed.startswith(f"Safe: {safe}") and "This job was run" in printed
    assert "beyond" not in printed
    if row is not None:
        frames = read_frames(MAP.parent / "resnet_regime")
        known = against_baseline(frames).set_index("row").loc[row]
        interval = f"{-100 * known['high']:.2f} to {-100 * known['low']:.2f}"
        assert f"({interval})" in printed


def test_pairs_meet_one_other_and_four_bits_travel_in_two_stages() -> None:
    frames = read_frames(MAP.parent / "gpt_text_methods")
    ways = {
        name: sendings_of(frames, frames.row(name))
        for name in ("noloco-37", "streaming_4-8", "cser_pl_4-8")
    }
    assert [(each.collective, each.one_peer) for each in ways["noloco-37"]] == [("exchange", True)]
    assert {
        each.collective for name in ("streaming_4-8", "cser_pl_4-8") for each in ways[name]
    } == {"two_stages"}
    assert ways["streaming_4-8"][0].models == pytest.approx(ways["cser_pl_4-8"][0].models / 2), (
        "half of it at a time"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "--parameters many --workers 8 --bandwidth 10Gb/s",
            "argument --parameters: must be a number above 0, as 25.6M",
        ),
        (
            "--parameters 1M --bandwidth 10Gb/s",
            "the following arguments are required: --workers/--layout",
        ),
        ("--parameters 1M --workers 1 --bandwidth 10Gb/s", "one worker sends nothing"),
        ("--parameters 1M --layout 2by4 --bandwidth 10Gb/s", "not '2by4'"),
        ("--parameters 1M --layout 8x --bandwidth 10Gb/s", "as 2x4, not '8x'"),
        ("--parameters 25.6 --workers 8 --bandwidth 10Gb/s", "25.6M is 25.6 millions"),
        ("--parameters 1M --workers 8 --bandwidth 10", "with its unit, as 10Gb/s"),
        ("--parameters 1M --workers 8 --bandwidth 10GB/s", "a number of bits a second"),
        ("--parameters 1M --workers 8 --bandwidth 10Gbps --map nowhere", "no folder nowhere"),
        (
            "--parameters 1M --workers 8 --bandwidth 10Gb/s --map nowhere",
            "there is no folder nowhere",
        ),
        (
            f"--parameters 1M --workers 8 --bandwidth 10Gb/s --map {MAP} {MAP.parent / 'gpt_text'}",
            "differ in task",
        ),
    ],
)
def test_mistakes_are_one_sentence(
    words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code: object = main(
            ["advise", *words.split(), *ALONE, "--steps", "1000", "--compute-ms", "27"]
        )
    except SystemExit as ended:  # argparse's, after the usage
        code = ended.code
    assert code == 2 and said in capsys.readouterr().err.splitlines()[-1]


def test_curves_through_three_loads_of_a_gpt_foretell_a_fourth(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What methods lose at an eighth of the load, from runs at four times, at once and at a
    quarter; and no steps."""
    lost = losses_of([read_frames(folder) for folder in folders_for("gpt", RESNET50, EVIDENCE)])
    fourth = lost_rows(read_frames(MAP.parent / "gpt_text_methods")).set_index("row")
    seen = {
        "local-64": "local AdamW",
        "cser-64": "CSER with AdamW, blocks",
        "diloco_half-64": "DiLoCo with AdamW",
    }
    assert (
        set(lost["label"]) == {*seen.values(), "EF-AdamW top-k"}
        and (lost["label"].value_counts() == 3).all()
    )
    for row, label in seen.items():
        jobs = pd.concat([fourth.loc[[row]], fourth.loc[[row]].assign(num_steps=19_220)])
        found = expected_losses(lost[lost["label"] == label], jobs, "models sent")
        assert found["share"].to_numpy() == pytest.approx(fourth.loc[row, "lost"], abs=0.06), row
        assert found["low"].max() < fourth.loc[row, "lost"] < found["high"].min()
        assert found["beyond"].to_numpy() == pytest.approx([61 / 30, 10], rel=0.1)
    words = (
        "--parameters 413696 --steps 1922 --workers 8 --compute-ms 10 --bandwidth 100Mb/s "
        "--network gpt"
    )
    methods = [line.split("  ")[0] for line in table_of(printed_by(capsys, f"{words} --all"))]
    # Long names go on in the next line, which `table_of` leaves out.
    assert {"local AdamW", "PowerSGD with", "DiLoCo with"} <= {*methods}
    assert not {"local SGD", "AdamW", "Muon"} & {*methods}


def test_a_residual_network_has_curves_through_three_loads(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lost = losses_of(
        [read_frames(folder) for folder in folders_for("residual", RESNET50, EVIDENCE)]
    )
    counts = lost["label"].value_counts()
    assert (
        set(counts.index) == {"local SGD", "DiLoCo", "M-CSER block", "EF-SGD top-k"}
        and (counts == 3).all()
    )
    for _, own in lost.groupby("label"):  # a curve is through its own runs, but for what seeds move
        found = expected_losses(own, own.assign(num_steps=4_680), "models sent")
        assert found["share"].to_numpy() == pytest.approx(own["lost"].to_numpy(), abs=0.05)
    words = (
        "--parameters 77594 --steps 4680 --workers 8 --compute-ms 10 --bandwidth 100Mb/s "
        "--network residual"
    )
    printed = printed_by(capsys, f"{words} --all")
    methods = [line.split("  ")[0] for line in table_of(printed)]
    assert {*counts.index, "PowerSGD", "SparseLoCo"} <= {*methods}
    assert "a residual network" in printed and "nats" not in printed
