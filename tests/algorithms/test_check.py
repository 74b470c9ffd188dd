"""The kit: methods that ship keep all promises, and each cheat and slip fails on its own line."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from cser_bench.algorithms import algorithms
from cser_bench.algorithms.check import (
    PROMISES,
    Subject,
    cases,
    finding_of,
    subjects_in,
)
from cser_bench.algorithms.check.__main__ import main

KINDS = (
    "sgd",
    "local_sgd",
    "ef_sgd",
    "cser",
    "powersgd",
    "diloco",
    "choco_sgd",
    "deep_squeeze",
)
"""By what they send: gradients, models, errors, factors, and to neighbours alone."""
ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "growing_local_sgd.py"
SOURCE = EXAMPLE.read_text()
IN_PROCESSES = list(PROMISES)[-1]
"""The promise that takes processes of its own."""


def subject_of(name: str) -> Subject:
    """A method that ships, by its file."""
    path = Path(sys.modules[algorithms()[name].__module__].__file__ or "")
    return next(subject for subject in subjects_in(path) if subject.name == name)


@pytest.mark.whole
@pytest.mark.parametrize("name", KINDS)
def test_methods_that_ship_keep_the_promises(name: str) -> None:
    """One method of each kind; what the promises say is held for all by the tests beside."""
    subject = subject_of(name)
    for promise in PROMISES:
        if promise != IN_PROCESSES:
            finding = finding_of(subject, promise)
            assert finding.verdict != "FAIL", finding


UPDATE = "        replica.local_step_()\n"
ROWS = """        replica.local_step_()
        x = replica.flat.parameters
        x.copy_(x.mean(0, keepdim=True).expand_as(x))
"""
DISTRIBUTED = """        replica.local_step_()
        import torch.distributed
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(replica.flat.parameters)
            replica.flat.parameters.div_(torch.distributed.get_world_size())
"""
HIDDEN = DISTRIBUTED.replace(
    "import torch.distributed\n",
    "import torch\n        d = getattr(torch, 'distr' + 'ibuted')\n",
).replace("torch.distributed", "d")
CONTROL = """        replica.local_step_()
        replica.average_in_place_(replica.flat.gradients, Purpose.CONTROL)
"""
LEDGER = """        replica.local_step_()
        replica.average_in_place_(replica.flat.gradients, Purpose.GRADIENT)
        bits = 32 * replica.flat.layout.numel
        replica.collectives.traffic.add(Purpose.GRADIENT, -bits, -1)
"""
FORGETS = """        self.velocity = getattr(self, "velocity", 0.0) + replica.flat.gradients
        replica.flat.gradients.add_(self.velocity, alpha=0.1)
        replica.local_step_()
"""
GLOBAL = """        replica.local_step_()
        import torch
        replica.flat.parameters.add_(torch.randn(1).item(), alpha=1e-3)
"""
THAWS = """        replica.local_step_()
        replica.flat.parameters.mul_(0.999)
"""
APART = (
    "workers that are rows of one process do what workers of their own do, to the bit"
)
BITS = "sends the bits that it says beforehand, and counts all that it sends"
SLIPS: dict[str, tuple[str, str, set[str]]] = {
    "a mean over rows": (
        UPDATE,
        ROWS,
        {APART, "no worker knows of another but by messages"},
    ),
    "torch.distributed": (
        UPDATE,
        DISTRIBUTED,
        {"talks through its collectives alone", IN_PROCESSES},
    ),
    "torch.distributed in hiding": (UPDATE, HIDDEN, {IN_PROCESSES}),
    "sent as control": (UPDATE, CONTROL, {BITS}),
    "taken from the ledger": (UPDATE, LEDGER, {BITS}),
    "wrong bits": ("numel * rounds,", "numel * rounds // 2,", {BITS}),
    "32 bits always": (
        "replica.float_bits *",
        "32 *",
        {"messages of 16 bits have half the bits"},
    ),
    "forgets a state": (
        UPDATE,
        FORGETS,
        {
            "goes on from a saved state to the bit",
            "its memory is the state that a checkpoint holds",
        },
    ),
    "global generator": (
        UPDATE,
        GLOBAL,
        {
            "draws nothing from global generators: a run that is repeated is the same to the bit",
            "goes on from a saved state to the bit",
        },
    ),
    "moves what is frozen": (UPDATE, THAWS, {"a frozen parameter stays as it is"}),
    "agrees too often": (
        "        return self._end_of(self._rounds_until(num_steps)) == num_steps",
        "        return True",
        {"workers agree after the steps that it says"},
    ),
    "another family": (
        '"local steps"',
        '"mine"',
        {"says what it is, and what it is to be tried with"},
    ),
    "no value": (
        'no_compression: ClassVar = {"sync_interval": 1, "growth": 0.0}',
        "no_compression: ClassVar = None",
        {"says what it is, and what it is to be tried with"},
    ),
    "another step": (
        UPDATE,
        UPDATE + UPDATE,
        {"without compression it is SGD on the mean gradient"},
    ),
}


@pytest.mark.whole
@pytest.mark.parametrize("slip", SLIPS)
def test_each_slip_fails_on_its_line(slip: str) -> None:
    before, after, lines = SLIPS[slip]
    text = SOURCE.replace(before, after)
    if slip == "agrees too often":
        # That is what steps with an average go by, too.
        text = text.replace(
            "if self._agree_after(replica, step):",
            "if self._end_of(self._rounds_until(step)) == step:",
        )
    assert text != SOURCE
    subject = Subject(text, "mine.py", "growing_local_sgd")
    needs_processes = IN_PROCESSES in lines
    # What is told where it is, alone, is looked at whole.
    promises = [promise for promise in PROMISES if promise in lines or needs_processes]
    findings = [finding_of(subject, promise) for promise in promises]
    failed = {finding.promise for finding in findings if finding.verdict == "FAIL"}
    assert lines <= failed, findings
    if needs_processes and slip != "torch.distributed":
        assert failed == lines


TWO_INTERVALS = """
from typing import ClassVar
from cser_bench.algorithms import RandomK
from cser_bench.algorithms.core import (
    DistributedOptimizer, Identity, Purpose, SharedSupport, Stage, Traffic,
)
from cser_bench.algorithms.core.settings import Count


class Mine(DistributedOptimizer):
    name = "mine"
    formula = "a part of d every H steps, and d every G"
    no_compression: ClassVar = {"compressor": Identity(), "part_every": 1, "all_every": 1}
    tried_with: ClassVar = TRIED

    compressor: KIND
    part_every: Count
    all_every: Count

    def stages(self, replica):
        part = Stage(Purpose.MODEL, SENT, every=self.part_every, except_every=self.all_every)
        return [part, Stage(Purpose.MODEL, every=self.all_every)]

    def _update(self, replica, step):
        replica.local_step_()
        x = replica.flat.parameters
        if step % self.all_every == 0:
            replica.average_in_place_(x, Purpose.MODEL)
        elif step % self.part_every == 0:
            sent = replica.exchange(x, SENT, step, Purpose.MODEL)
            sent.support.add_(x, sent.mean - sent.own)
"""
STAGES = """    def _expected_traffic(self, replica, num_steps):
        traffic, rounds = Traffic(), num_steps // self.all_every
        traffic.add(Purpose.MODEL, replica.float_bits * replica.flat.layout.numel * rounds, rounds)
        return traffic

    def no_stages"""
DESCRIBED = "says what it is, and what it is to be tried with"


def two_intervals(
    tried: str = '{"part_every": 3, "all_every": 6}',
    kind: str = "SharedSupport",
    sent: str = "self.compressor",
) -> str:
    """A method that sends a part of the model at some steps, and all of it at others."""
    return (
        TWO_INTERVALS.replace("TRIED", tried)
        .replace("KIND", kind)
        .replace("SENT", sent)
    )


def raising(source: str) -> str:
    """The method with an error where it sends a part."""
    line = "            sent = "
    assert line in source
    return source.replace(line, f"            raise KeyError('never seen')\n{line}")


def failed(source: str) -> dict[str, str]:
    """What is said of each promise that the method does not keep."""
    promises = [promise for promise in PROMISES if promise != IN_PROCESSES]
    findings = [
        finding_of(Subject(source, "mine.py", "mine"), promise) for promise in promises
    ]
    return {each.promise: each.words for each in findings if each.verdict == "FAIL"}


@pytest.mark.parametrize(
    "source",
    [
        two_intervals(),
        two_intervals(
            '{"part_every": 3, "all_every": 6, "compressor": RandomK(5)}', "RandomK"
        ),
    ],
    ids=["intervals", "and compressor"],
)
def test_a_method_is_tried_with_what_its_author_states(source: str) -> None:
    assert failed(source) == {}
    assert "never seen" in failed(raising(source))[BITS]


NOT_REACHED = {
    "a stage in whose place another is": (
        raising(two_intervals("{}")),
        r"with blocks, stage 1 \(model, every 4 steps\) takes place in none of 12 steps.* tried_with",
    ),
    "a stage after the last step": (
        two_intervals('{"part_every": 3, "all_every": 60}'),
        r"with blocks, stage 2 \(model, every 60 steps\) takes place in none of 12 steps",
    ),
    "a compressor of a method without stages": (
        raising(two_intervals("{}")).replace("    def stages", STAGES),
        "with blocks, compressor changes nothing in 12 steps.* tried_with",
    ),
    "a compressor that is never used": (
        two_intervals(sent="Identity()"),
        "with blocks, compressor changes nothing in 12 steps",
    ),
    "a compressor that is left out": (
        two_intervals(
            '{"part_every": 3, "all_every": 6, "compressor": None}',
            "SharedSupport | None",
            "(self.compressor or Identity())",
        ),
        "compressor changes nothing in 12 steps",
    ),
    "a compressor of a kind of its own": (
        two_intervals(kind="RandomK"),
        "none of blocks, top-k, qsgd is what all its compressors may be.* tried_with",
    ),
}


@pytest.mark.parametrize("kind", NOT_REACHED)
def test_what_checks_do_not_reach_is_said(kind: str) -> None:
    source, words = NOT_REACHED[kind]
    finding = finding_of(Subject(source, "mine.py", "mine"), DESCRIBED)
    assert finding.verdict == "FAIL" and re.search(words, finding.words), finding


def test_an_optional_compressor_is_tried() -> None:
    sent = "(self.compressor or Identity())"
    source = two_intervals(kind="SharedSupport | None = None", sent=sent)
    assert failed(source) == {}
    with_one = raising(source).replace(
        "            raise", "            if self.compressor: raise"
    )
    assert "never seen" in failed(with_one)[BITS]


@pytest.mark.whole
@pytest.mark.parametrize("name", algorithms())
def test_checks_reach_all_of_each_method_that_ships(name: str) -> None:
    finding = finding_of(subject_of(name), DESCRIBED)
    assert finding.verdict == "ok", finding


@pytest.mark.whole
def test_the_command_says_a_line_for_each_promise_and_an_authors_suite_has_cases(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([str(EXAMPLE)]) == 0
    printed = capfd.readouterr().out.splitlines()
    assert [line.split(maxsplit=1)[0] for line in printed[1:-1]] == ["ok"] * len(
        PROMISES
    )
    file = tmp_path / "mine.py"
    file.write_text(SOURCE.replace(UPDATE, THAWS))
    assert main([str(tmp_path / "none.py")]) == 2
    assert "cannot be read" in capfd.readouterr().err
    assert main([]) == 2
    suite = tmp_path / "test_mine.py"
    suite.write_text(
        f"from cser_bench.algorithms.check import cases\ntest_promises = cases({str(file)!r})\n"
    )
    words = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        "frozen or bits",
    ]
    done = subprocess.run(
        [*words, str(suite)], cwd=ROOT, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 1 and "a frozen parameter stays" in done.stdout, (
        done.stdout
    )
    assert cases(EXAMPLE)
