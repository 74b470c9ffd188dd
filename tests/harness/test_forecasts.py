"""What a plan foretells: time, memory and cost by dry steps, a known GPU and prices; the power of its contrasts."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from harness.cli import show
from harness.plan import footprint, forecast
from harness.plan.footprint import MEASURED, StepTime, dry_steps
from harness.plan.forecast import powers
from harness.plan.plan import Plan, make_plan
from harness.plan.tuning import neighbouring_rates
from harness.records.experiment import Contrast
from harness.spec import Spec
from harness.spec_file import EXPERIMENTS, load_spec
from tests.harness.support import CSER, Table, changed, small_config, small_spec, write_spec


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_dry_steps_need_no_data_and_leave_the_global_generator_alone(precision: str) -> None:
    before = torch.random.get_rng_state()
    measured = dry_steps(small_config("cser", CSER, precision=precision), torch.device("cpu"))
    assert 0 < measured.seconds < 10
    assert measured.activation_bytes is None  # counted on GPUs alone
    assert torch.equal(torch.random.get_rng_state(), before)


def told(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What a plan says after its table."""
    show.show_plan(make_plan(load_spec(write_spec(folder, small_spec())), folder))
    return capsys.readouterr().out.split("\n\n")[-1]


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a GPU on which a step takes half a second and 3 MB."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda index: "NVIDIA X1")
    monkeypatch.setattr(footprint, "dry_steps", lambda config, device: StepTime(0.5, "NVIDIA X1", MEASURED, 3_000_000))
    footprint._KNOWN_TIMES.clear()
    yield
    footprint._KNOWN_TIMES.clear()


@pytest.mark.usefixtures("a_gpu")
def test_with_a_gpu_time_and_activations_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = told(tmp_path, capsys)
    assert "activations add 3 MB (measured on dry steps on random images: 20 of them, fp32)" in output
    # 6 runs of 40 steps of half a second.
    each, whole = 40 * 0.5 / 3600, 6 * 40 * 0.5 / 3600
    assert f"  compute: {each:.2g} and {whole:.2g} (NVIDIA X1; measured on dry steps on random images)" in output
    assert "no price: harness/records/hardware.toml has none for NVIDIA X1" in output and "dollars" not in output


EPOCHS, IMAGES, STEPS = 120, 1_281_167, 120 * (1_281_167 // 256)


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return make_plan(load_spec(EXPERIMENTS / "imagenet.toml"), tmp_path_factory.mktemp("none"))


def hours_of(images_per_second: float) -> float:
    """Of a run, at the rate of eight GPUs together."""
    return STEPS * 256 / images_per_second / 3600


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_hours_and_dollars_are_ranges_with_a_source_for_each_end(
    imagenet: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    show.show_plan(imagenet)
    output = capsys.readouterr().out
    assert "80 runs" in output and "without activations" in output
    assert "fp16 messages: rounding is lost by sgd; all others send it later\n" in output
    found = re.findall(r"^  (low|between|likely): ([\d,.]+) and ([\d,.]+) \(V100-16GB; (.*)\)$", output, re.M)
    assert [name for name, *_ in found] == ["low", "likely"]
    published = {5815.8: "before NHWC", 4808.0: "GluonCV, training log"}  # and not 8322, of batches of 256
    for (_, each, whole, source), (rate, words) in zip(found, published.items(), strict=True):
        # The network is not quite ResNet-50 v1.5, and scaled by arithmetic.
        assert float(each) == pytest.approx(hours_of(rate), rel=0.05)
        assert float(whole.replace(",", "")) == pytest.approx(80 * hours_of(rate), rel=0.05)
        assert words in source and f"{rate:g} images/s" in source
    dollars = {
        name: (float(low.replace(",", "")), float(high.replace(",", "")))
        for low, high, name in re.findall(r"about ([\d,]+) to ([\d,]+) dollars on \d x (p3\.\d+xlarge) \(AWS", output)
    }
    low, likely = 80 * hours_of(5815.8), 80 * hours_of(4808)
    sent = sum(len(row.runs) * (row.link_models or 0) for row in imagenet.experiment.rows)
    added = sent * 32 * imagenet.experiment.rows[0].num_parameters / 10e9 / 3600
    assert dollars["p3.2xlarge"] == pytest.approx((low * 8 * 3.06, (likely + added) * 8 * 3.06), rel=0.05)
    assert dollars["p3.16xlarge"] == pytest.approx((low * 24.48, likely * 24.48), rel=0.05)  # nothing leaves it


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_communication_is_the_rings_share_at_line_rate(imagenet: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    show.show_plan(imagenet, 25e9)
    output = capsys.readouterr().out
    header, _, *lines = (line for line in output.splitlines() if "  " in line.strip())
    column = re.split(r"\s{2,}", header).index("hours at 25 Gb/s")
    rows = [re.split(r"\s{2,}", line) for line in lines]
    shown = {cells[0]: cells[column] for cells in rows if len(cells) > column and cells[0].strip("-")}
    # fp16 on the wire: each worker's link carries 2 (n - 1) / n of the payload.
    sgd = 2 * 7 / 8 * 16 * imagenet.experiment.rows[0].num_parameters * STEPS / 25e9 / 3600
    assert float(shown["sgd"]) == pytest.approx(sgd, rel=0.01)
    assert float(shown["ef_sgd-256"]) == pytest.approx(sgd / 256, abs=0.01)
    show.show_plan(imagenet, 0.0)
    assert "Gb/s, at line rate" not in capsys.readouterr().out


def test_a_price_is_of_the_gpu_that_the_hours_are_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    times = (StepTime(3600.0, "Tesla V100-SXM2-16GB", "measured"),)
    monkeypatch.setattr(forecast, "step_times", lambda config: times)
    output = told(tmp_path, capsys)
    # An hour a step, two workers: 240 hours at the price of two machines.
    dollars = 240 * 2 * 3.06
    assert f"about {dollars:,.0f} to {dollars:,.0f} dollars on 2 x p3.2xlarge" in output


# What contrasts can show.

DEVIATION, MARGIN, DRAWS = 0.004, 0.006, 4000


def table_of(**changes: object) -> Table:
    table = small_spec()
    for path, value in {"statistics.declared": "nothing", "statistics.margin": MARGIN, **changes}.items():
        table = changed(table, path.replace("__", "."), value)
    return table


def contrast(kind: str) -> Table:
    return {"row": "cser", "reference": "sgd", "kind": kind, "question": "?"}


def drawn(kind: str, apart: float) -> float:
    """The share of drawn experiments, 3 seeds against 6, that a pooled t test decides for the contrast's claim."""
    generator = np.random.default_rng(0)
    row = generator.normal(apart, DEVIATION, (DRAWS, 3))
    reference = generator.normal(0, DEVIATION, (DRAWS, 6))
    if kind == "superiority":
        return float((stats.ttest_ind(row, reference, axis=1).pvalue < 0.05).mean())
    above = stats.ttest_ind(row + MARGIN, reference, axis=1, alternative="greater").pvalue < 0.05
    if kind == "non-inferiority":
        return float(above.mean())
    below = stats.ttest_ind(row - MARGIN, reference, axis=1, alternative="less").pvalue < 0.05
    return float((above & below).mean())


@pytest.mark.parametrize(("kind", "apart"), [("non-inferiority", 0.0), ("superiority", MARGIN), ("equivalence", 0.0)])
def test_the_power_of_a_plan_is_the_share_of_drawn_experiments_that_show_it(
    kind: str, apart: float, tmp_path: Path
) -> None:
    spec = Spec.model_validate(
        table_of(contrasts=[contrast(kind)], statistics__seeds=[1, 2, 3], statistics__baseline_seeds=[1, 2, 3, 4, 5, 6])
    )
    plan = make_plan(spec, tmp_path)
    assert [len(row.runs) for row in plan.experiment.rows] == [6, 3, 3]
    (found,) = powers(plan.experiment, DEVIATION)
    assert found.contrast == Contrast(**contrast(kind), margin=MARGIN)
    assert found.alone == pytest.approx(drawn(kind, apart), abs=0.03)
    assert found.first == found.alone, "one contrast has no other to be corrected for"
    two = Spec.model_validate(table_of(contrasts=[contrast("non-inferiority"), contrast("superiority")]))
    assert all(each.first < each.alone for each in powers(make_plan(two, tmp_path).experiment, DEVIATION))


def test_rates_beside_the_chosen_one_are_rows_of_their_own_at_the_seeds_asked_for(tmp_path: Path) -> None:
    plan = make_plan(Spec.model_validate(table_of(sensitivity={"seeds": [2]})), tmp_path)
    beside = [row for row in plan.experiment.rows if row.rule == "sensitivity"]
    assert {row.base for row in beside} >= {"sgd"} and all(list(row.runs) == ["2"] for row in beside)
    rates = {row.row: row.learning_rate for row in plan.experiment.rows}
    assert all(row.learning_rate in neighbouring_rates(rates[row.base or ""]) for row in beside)


def test_neighbours_go_on_in_the_row_of_ones_and_threes() -> None:
    assert neighbouring_rates(0.003) == (0.001, 0.01)
    assert neighbouring_rates(0.1) == (0.03, 0.3)
    assert neighbouring_rates(0.2) == pytest.approx((0.2 / 3, 0.6), rel=1e-5)
