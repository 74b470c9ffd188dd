"""Sentences and tables of the speed report, made from numbers, against made-up timings whose answer is known."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import pytest

from report.kit.document import Bullets, Table
from report.speed.records import read_speed_records
from report.speed.speedups import CLEARLY
from report.speed.study import Bench, SpeedStudy, study_of
from report.speed.tables_agreement import agreement_table, verdict_sentence
from report.speed.tables_codecs import largest_sentence
from report.speed.tables_gossip import gossip_sentence, gossip_table
from report.speed.tables_large import alike_sentence, large_table
from report.speed.tables_latency import latencies_table, latency_sentence
from report.speed.tables_modelled import break_even_table
from report.speed.tables_neighbours import relatives_sentence
from report.speed.tables_published import diloco_shares, published_links_table
from report.speed.tables_timed import steps_table
from report.speed.verdict import speed_verdict
from tests.report.made_up_timings import CODEC, RATES, fabric, sweep, timing, write_full, write_study

RESNET50, FASHION = "resnet50_v100", "fashion_mnist"
DILATION = 20.0


def study(folder: Path, *timings: dict[str, Any]) -> SpeedStudy:
    return study_of(read_speed_records(write_study(folder, [sweep(rate) for rate in RATES], timings)))


def add(record: dict[str, Any], name: str, label: str, times: float, like: str = "all_reduce", **fields: Any) -> None:
    """A method whose communication takes so many times as long as another's."""
    [method] = [method for method in record["methods"] if method["name"] == like]
    record["methods"].append(method | {"name": name, "label": label, "baseline": False} | fields)
    for step in [step for step in record["steps"] if step["method"] == like]:
        idle = step["seconds"] - step["compute_seconds"] - step["codec_seconds"]
        record["steps"].append(step | {"method": name, "seconds": step["seconds"] + (times - 1) * idle})


def slow(record: dict[str, Any], name: str, times: float) -> None:
    """Make all steps of a method so many times as long."""
    for step in record["steps"]:
        if step["method"] == name:
            step["seconds"] *= times


def rings(folder: Path, where_latency_rules: float) -> SpeedStudy:
    """A ring's exchange that takes a quarter longer where bytes rule, and so many times as long where latency does.

    A model of 400 kB at 20 Gb/s takes 0.3 ms in an all-reduce, and its 14 hops of 0.1 ms take 1.4 ms.
    """
    quick, sent = timing(FASHION, 20e9), timing(RESNET50, 10e9)
    add(quick, "dpsgd_ring", "D-PSGD, ring", where_latency_rules)
    add(sent, "dpsgd_ring", "D-PSGD, ring", 1.25)
    return study(folder, sent, quick)


def test_a_ring_is_said_to_save_latency_and_not_bytes_where_it_does(tmp_path: Path) -> None:
    made = rings(tmp_path, 1 / 3)
    assert gossip_sentence(made) == (
        "A gossip ring saves latency, not bytes: its exchange is 3.00x as fast as an all-reduce of as many numbers "
        "where latency rules (a model, fashion_mnist, 8 x 1, 20 Gb/s), and 0.80x where bytes do (a model, "
        "resnet50_v100, 8 x 1, 10 Gb/s)."
    )
    rows = [[cell.text for cell in row] for row in gossip_table(made).rows]
    assert [row[:4] for row in rows] == [
        [RESNET50, "8 x 1, 10 Gb/s", "a model", "bytes"],
        [FASHION, "8 x 1, 20 Gb/s", "a model", "latency"],
    ]
    # 14 hops of 0.1 ms; 1.75 times 400 kB at 90 % of 20 Gb/s.
    assert float(rows[1][4]) == pytest.approx(1.4e-3 / (1.75 * 400e3 * 8 / 18e9), rel=0.05)


def test_a_ring_that_saves_nothing_is_not_said_to(tmp_path: Path) -> None:
    assert "saves latency" not in gossip_sentence(rings(tmp_path, 1.1))


def test_one_network_alone_says_nothing_of_rings(tmp_path: Path) -> None:
    made = study(tmp_path, timing(RESNET50, 10e9))
    assert gossip_sentence(made) == "" and not gossip_table(made).rows


def two_latencies(folder: Path) -> Bench:
    """The same links by a clock that is slowed down twice as much, where all steps are a tenth shorter."""
    first, second = timing(RESNET50, 10e9), timing(RESNET50, 10e9)
    second["fabric"] = fabric(10e9 / 40, 40.0)
    for step in second["steps"]:
        step["seconds"] = 0.9 * 2 * (step["seconds"] - CODEC) + CODEC
        step["compute_seconds"] *= 2
    return study(folder, first, second).benches[0]


def test_two_latencies_stand_beside_each_other(tmp_path: Path) -> None:
    bench = two_latencies(tmp_path)
    assert len(bench.curve) == 1 and bench.curve[0].fabric.dilation == DILATION
    assert [bench.name_of(each) for each in bench.ordered] == [
        "8 x 1, 10 Gb/s, 5 µs a hop",
        "8 x 1, 10 Gb/s, 2.5 µs a hop",
    ]
    assert latency_sentence(bench) == (
        "resnet50_v100 at 10 Gb/s: with 5 µs a hop instead of 2.5 µs a hop, mcser's step changes by +11.1 %, and ddp's "
        "by +11.1 %."
    )
    table = latencies_table(bench)
    assert len(table.rows) == len(bench.methods) and {row[3].text for row in table.rows} == {"+11.1 %"}
    # 14 hops of 2.5 µs more at every message: by the model, one message a step.
    [row] = [row for row in table.rows if row[0].text == "all reduce"]
    known = next(p for p in bench.points if p.timing is bench.main and p.method.name == "all_reduce")
    assert known.predicted
    change = 14 * 2.5e-6 / (known.predicted - 14 * 2.5e-6)
    assert row[4].text == f"+{100 * change:.1f} %" or (change < 0.0005 and row[4].text == "0.0 %")


def test_one_latency_has_no_table(tmp_path: Path) -> None:
    bench = study(tmp_path, timing(RESNET50, 10e9), timing(RESNET50, 1e9)).benches[0]
    assert bench.latencies == () and latency_sentence(bench) == "" and not latencies_table(bench).rows
    assert [bench.name_of(each) for each in bench.ordered] == ["8 x 1, 1 Gb/s", "8 x 1, 10 Gb/s"]


def test_large_ratios_that_are_alike_leave_the_choice_to_accuracy(tmp_path: Path) -> None:
    record = timing(RESNET50, 10e9)
    bench = study(tmp_path, record).benches[0]
    seconds = {p.method.name: p.timed.seconds for p in bench.points}
    large = [seconds[name] for name in ("ef_sgd", "csea", "csea_overlap", "mcser")]
    assert alike_sentence(bench) == (
        f"resnet50_v100 at 10 Gb/s: all 4 methods of ratio 64 and more are {seconds['ddp'] / max(large):.2f}x to "
        f"{seconds['ddp'] / min(large):.2f}x as fast as DDP in fp32, and the fastest of them is "
        f"{max(large) / min(large):.2f}x as fast as the slowest, so choose among them by accuracy."
    )
    assert large_table(bench).found.startswith("On 1 of 1 network ")
    slow(record, "csea", 1.5)
    other = study(tmp_path / "slow", record).benches[0]
    assert alike_sentence(other).endswith("as fast as the slowest.")
    assert large_table(other).found.startswith("On 0 of 1 network ") and large_table(other).rows[0][7].text == "csea"


def test_the_longest_codec_is_named_with_its_reason(tmp_path: Path) -> None:
    record = timing(RESNET50, 10e9)
    for method in record["methods"]:
        method["codec_alone_seconds"] = {"powersgd_4": 0.3, "ddp": 0.03}.get(method["name"], 0.01)
    assert largest_sentence(study(tmp_path, record)).startswith(
        "Encoding, decoding and update take longest, on a core of this machine, in powersgd 4 on resnet50_v100 (300 "
        "ms, 10.0x DDP's): it multiplies every matrix of the gradient"
    )
    assert largest_sentence(study(tmp_path / "none", timing(RESNET50, 10e9))) == ""


def test_relatives_are_said_as_the_clock_had_them(tmp_path: Path) -> None:
    record = timing(RESNET50, 10e9)
    add(record, "diloco", "DiLoCo", 0.1)
    add(record, "dpsgd_ring", "D-PSGD, ring", 1.2)
    bench = study(tmp_path, record).benches[0]
    gains = {p.method.label: p.timed.seconds for p in bench.points}
    assert relatives_sentence(bench) == (
        f"resnet50_v100 at 10 Gb/s: of 2 relatives of the family DiLoCo is {gains['ddp'] / gains['DiLoCo']:.2f}x as "
        f"fast as DDP in fp32, the most, and D-PSGD, ring is {gains['ddp'] / gains['D-PSGD, ring']:.2f}x, the least."
    )


def test_the_model_is_judged_network_by_network(tmp_path: Path) -> None:
    made = study(tmp_path, timing(RESNET50, 1e9), timing(RESNET50, 10e9, factor=1.5))
    rows = [[cell.text for cell in row] for row in agreement_table(made).rows]
    assert [row[1] for row in rows] == ["8 x 1, 1 Gb/s", "8 x 1, 10 Gb/s"]
    # Steps, and those that the model is near: all of one network, and none of a clock that is half slower.
    assert [row[2:4] for row in rows] == [["10", "10"], ["10", "0"]]
    large = [int(row[5]) for row in rows]
    assert verdict_sentence(made.points).startswith(
        f"The modelled communication time is within 10 % of the clock's in {large[0]} of {sum(large)} timed steps in "
        "which it takes over 10 % of the compute, and that of a null model, which predicts none, in 0; of all 20 it is "
        "in 10."
    )


def test_how_much_of_the_link_diloco_used_is_bytes_over_seconds(tmp_path: Path) -> None:
    record = timing(RESNET50, 1e9)
    add(record, "diloco", "DiLoCo", 1.0, like="mcser", messages=[])
    [method] = [each for each in record["methods"] if each["name"] == "diloco"]
    payload = 4 * 25_557_032
    method["messages"] = [{"collective": "all_reduce", "payload_bytes": payload, "every": 32, "ready": 1.0}]
    for step in record["steps"]:
        if step["method"] == "diloco":
            idle = 40.0 if step["synchronises"] else 0.0
            step["seconds"] = step["compute_seconds"] + step["codec_seconds"] + idle
    bench = study(tmp_path, record).benches[0]
    # By its own clock 40 s, of the device's time 2 s; the bytes alone take 1.43 s at 1 Gb/s.
    assert diloco_shares(bench) == pytest.approx({1e9: 1.75 * payload * 8 / 1e9 / 2.0})
    table = published_links_table(bench)
    assert "its synchronisation used, of the link, 72 % at 1 Gb/s" in table.notes[-1]


def test_emulated_links_of_one_efficiency_change_little(tmp_path: Path) -> None:
    """Nine tenths of every link are used, and a hop waits 5 µs: only the compute that is solved for differs."""
    rows = [[cell.text for cell in row] for row in published_links_table(_full(tmp_path)).rows]
    modelled = [row for row in rows if row[1] == "modelled, %"]
    emulated = [row for row in rows if row[1] == "emulated links, %"]
    assert len(modelled) == len(emulated) == 4
    for one, other in zip(modelled, emulated, strict=True):
        assert float(other[2]) == pytest.approx(float(one[2]) / 0.9, rel=0.02)
        shares = [[float(text.split(" ")[0]) for text in row[3:] if text != "solved"] for row in (one, other)]
        assert shares[1] == pytest.approx(shares[0], rel=0.03)


def _full(folder: Path) -> Bench:
    made = study_of(read_speed_records(write_full(folder)))
    return next(bench for bench in made.benches if bench.workload.name == RESNET50)


def test_the_verdict_is_one_sentence_a_bullet(tmp_path: Path) -> None:
    made = study_of(read_speed_records(write_full(tmp_path)))
    [bullets] = speed_verdict(made).blocks
    assert isinstance(bullets, Bullets) and 5 <= len(bullets.items) <= 16
    assert all(". " not in said and said.endswith(".") for said in bullets.items)
    bench = _full(tmp_path / "again")
    gains = []
    for point in bench.points:
        if point.method.name == "mcser":
            [base] = [p for p in bench.points if p.timing is point.timing and p.method.name == "ddp"]
            gains.append(base.timed.seconds / point.timed.seconds)
    parts = [f"{gain:.2f}x" if gain < 9.95 else f"{gain:.1f}x" for gain in sorted(gains, reverse=True)]
    first = bullets.items[0]
    assert first.startswith("resnet50_v100 by the clock (emulated, without encoding and update): mcser's speed-up at ")
    assert all(part in first for part in parts) and first.endswith("over DDP in fp32.")


def test_steps_stand_beside_ddps(tmp_path: Path) -> None:
    record = timing(FASHION, 100e6)
    table: Table = steps_table(study(tmp_path, record).benches[0])
    [row] = [row for row in table.rows if row[0].text == "ddp fp16"]
    own, base = (
        median(step["seconds"] for step in record["steps"] if step["method"] == name) for name in ("ddp_fp16", "ddp")
    )
    assert row[2].text == f"{1e3 * own:.3g} ({base / own:.2f}x)"


def test_break_even_is_of_steps_that_are_clearly_faster(tmp_path: Path) -> None:
    bench = study(tmp_path, timing(RESNET50, 10e9)).benches[0]
    base, method = bench.method("ddp"), bench.method("mcser_32")
    assert base and method
    [row] = [row for row in break_even_table(bench).rows if row[0].text == "mcser 32"]
    edge = float(row[1].text.removeprefix("below ").removesuffix(" Gb/s")) * 1e9
    gains = [bench.seconds_at(base, rate) / bench.seconds_at(method, rate) for rate in (0.98 * edge, 1.02 * edge)]
    assert gains[0] > CLEARLY > gains[1]
