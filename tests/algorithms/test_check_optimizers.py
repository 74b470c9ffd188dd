"""The kit for plain optimisers: torch's local SGD passes, and each slip fails on its own line."""

import subprocess
import sys
from pathlib import Path

import pytest

from cser_bench.algorithms.check import (
    OPTIMIZER_PROMISES,
    makes_optimizer,
    optimizer_finding_of,
    optimizer_in,
)
from cser_bench.algorithms.check.__main__ import main

pytestmark = pytest.mark.whole

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "torch_local_sgd.py"
PLAIN, RESUMES, AGREES = OPTIMIZER_PROMISES

# Averages every fourth step, says so of every second, and its momentum is in no state.
FORGETFUL = """
import torch
import torch.distributed as dist


class Forgetful(torch.optim.Optimizer):
    def __init__(self, model):
        super().__init__(model.parameters(), {})
        self.parameters = list(model.parameters())
        self.velocities = [torch.zeros_like(x) for x in self.parameters]
        self.num_steps = 0

    @torch.no_grad()
    def step(self):
        self.num_steps += 1
        for x, velocity in zip(self.parameters, self.velocities):
            velocity.mul_(0.9).add_(x.grad)
            x.sub_(velocity, alpha=0.1)
            if self.num_steps % 4 == 0:
                dist.all_reduce(x)
                x.div_(dist.get_world_size())


def make(model):
    return Forgetful(model)


def agree_after(step):
    return step % 2 == 0
"""


def test_torchs_local_sgd_keeps_what_it_says_by_the_command(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert main([str(EXAMPLE)]) == 0
    printed = capfd.readouterr().out.splitlines()
    verdicts = [line.split(maxsplit=1)[0] for line in printed[1:-1]]
    assert verdicts == ["ok"] * 3
    assert printed[-1].startswith("3 of 3 promises are kept")


def test_claims_that_do_not_hold_fail_and_what_is_not_claimed_is_not_asked(
    tmp_path: Path,
) -> None:
    file = tmp_path / "forgetful.py"
    file.write_text(FORGETFUL)
    assert makes_optimizer(file)
    subject = optimizer_in(file)
    findings = {
        promise: optimizer_finding_of(subject, promise)
        for promise in OPTIMIZER_PROMISES
    }
    assert findings[PLAIN].verdict == "none"
    assert findings[RESUMES].verdict == "FAIL"
    assert "saved after step 3 and resumed" in findings[RESUMES].words
    assert findings[AGREES].verdict == "FAIL"
    assert "after step 2 a parameter differs by" in findings[AGREES].words


def test_another_step_is_not_plain_and_a_failure_is_told_where_it_is(
    tmp_path: Path,
) -> None:
    """An average of every second step, and a state that cannot be read back."""
    file = tmp_path / "mine.py"
    text = EXAMPLE.read_text().replace("_averaging(model, 1)", "_averaging(model, 2)")
    text += """

class Unreadable(PostLocalSGDOptimizer):
    def load_state_dict(self, state):
        raise KeyError("momentum of mine")


PostLocalSGDOptimizer = Unreadable
"""
    file.write_text(text)
    subject = optimizer_in(file)
    findings = {
        promise: optimizer_finding_of(subject, promise)
        for promise in OPTIMIZER_PROMISES
    }
    assert findings[PLAIN].verdict == "FAIL"
    assert "after step 2" in findings[PLAIN].words
    assert findings[RESUMES].verdict == "FAIL"
    assert "momentum of mine" in findings[RESUMES].words
    assert findings[AGREES].verdict == "ok"


def test_words_for_a_file_that_lacks_something_and_cases_for_an_authors_suite(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    half = tmp_path / "half.py"
    half.write_text(
        EXAMPLE.read_text().replace("def make_uncompressed", "def make_other")
    )
    assert main([str(half)]) == 2
    assert "give both, or none" in capfd.readouterr().err
    broken = tmp_path / "broken.py"
    broken.write_text("def make(model):\n    return 1\n\nimport not_there_at_all\n")
    assert main([str(broken)]) == 2
    assert "does not import" in capfd.readouterr().err
    suite = tmp_path / "test_mine.py"
    suite.write_text(
        f"from cser_bench.algorithms.check import cases\ntest_promises = cases({str(EXAMPLE)!r})\n"
    )
    words = [
        sys.executable,
        "-m",
        "pytest",
        "--collect-only",
        "-q",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(
        [*words, str(suite)], cwd=ROOT, capture_output=True, text=True, timeout=280
    )
    for promise in OPTIMIZER_PROMISES:
        assert promise in done.stdout, done.stdout
