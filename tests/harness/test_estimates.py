"""What a plan says of time, memory and cost: dry steps, figures of a known GPU, prices."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from harness.cli import show
from harness.plan import estimate
from harness.plan.dry_step import DrySteps, dry_steps
from harness.plan.estimate import StepTime
from harness.plan.plan import make_plan
from harness.spec import EXPERIMENTS, load_spec
from tests.harness.support import CSER, small_config, small_spec, write_spec


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
    monkeypatch.setattr(estimate, "dry_steps", lambda config, device: DrySteps(0.5, 3_000_000))
    estimate._KNOWN.clear()
    yield
    estimate._KNOWN.clear()


@pytest.mark.usefixtures("a_gpu")
def test_with_a_gpu_time_and_activations_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = told(tmp_path, capsys)
    assert "activations add 3 MB (measured on dry steps on random images: 20 of them, fp32)" in output
    # 6 runs of 2 workers and 40 steps.
    assert f"{6 * 2 * 40 * 0.5 / 3600:.1f} NVIDIA X1 hours" in output
    assert "no price: harness/plan/prices.toml has none for NVIDIA X1" in output and "dollars" not in output


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_a_large_model_is_modelled_and_said_to_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = make_plan(load_spec(EXPERIMENTS / "imagenet.toml"), tmp_path)
    show.show_plan(plan)
    output = capsys.readouterr().out
    assert "80 runs" in output and "without activations" in output
    hours = re.search(r"([\d,.]+) V100 hours .*\(modelled: ", output)
    assert hours is not None
    # 8 workers' steps of 32 images, at 1,200 images a second if the network cost what ResNet-50 v1.5 costs.
    images = 80 * 120 * (1_281_167 // 256) * 256
    assert float(hours[1].replace(",", "")) == pytest.approx(images / 1200 / 3600, rel=0.05)
    assert "p3.16xlarge" in output and "AWS" in output


def test_a_price_is_of_the_gpu_that_the_hours_are_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(show, "step_time", lambda config: StepTime(3600.0, "Tesla V100-SXM2-16GB", "measured"))
    output = told(tmp_path, capsys)
    # An hour a step: 480 hours at the price of one GPU.
    assert f"about {6 * 2 * 40 * 3.06:,.0f} dollars on p3.2xlarge" in output


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_small_model_is_timed_on_this_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = told(tmp_path, capsys)
    assert "CPU core hours" in output and "(measured on dry steps on random images)" in output
    assert "without activations" in output
