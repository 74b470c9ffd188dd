"""Documents: the examples of docs/adding.md keep what they promise, and commands exist."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from cser_bench.algorithms import (
    BlockSparsifier,
    Collectives,
    DistributedOptimizer,
    Identity,
    TopK,
    algorithms,
    registry,
)
from cser_bench.algorithms import baselines as baselines_package
from cser_bench.algorithms.check import PROMISES, Subject, finding_of
from cser_bench.algorithms.core.compressors import Draw, SharedSupport
from cser_bench.algorithms.core.layout import Layout
from cser_bench.algorithms.registry import _by_name, _classes, compressors
from cser_bench.harness import tasks
from cser_bench.harness.cli.parser import _parser
from cser_bench.harness.plan.footprint import footprint_of
from cser_bench.harness.records.store import Result, read_record, read_run
from cser_bench.harness.spec.run import TaskSpec
from cser_bench.harness.tasks.task import TensorSamples, find_task
from cser_bench.harness.workers.attempt import attempt_as_rank, attempt_stacked
from cser_bench.report.questions.evidence import evidence_of
from cser_bench.report.render import environment
from tests.algorithms.problems import (
    make_model,
    make_optimizer,
    own_settings,
    train,
    trained,
    workers,
)
from tests.harness.support import job_for, small_config

PAGE = Path(__file__).parents[1] / "docs" / "adding.md"
METHOD, COMPRESSOR, BASELINE, TASK, QUESTION = range(5)


def shown(number: int, language: str = "python") -> str:
    """One of the page's pieces of code."""
    return str(
        re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)[
            number
        ]
    )


def run(number: int, **names: Any) -> dict[str, Any]:
    """What a piece defines."""
    module = ModuleType("shown")
    module.__dict__.update(names)
    sys.modules["shown"] = module
    exec(compile(shown(number), str(PAGE), "exec"), module.__dict__)
    return module.__dict__


# A method.


@pytest.fixture
def method(monkeypatch: pytest.MonkeyPatch) -> str:
    kinds = [
        each
        for each in run(METHOD).values()
        if isinstance(each, type) and issubclass(each, DistributedOptimizer)
    ]
    (own,) = (each for each in kinds if each is not DistributedOptimizer)
    monkeypatch.setitem(algorithms(), own.name, own)
    return own.name


def test_the_method_is_sgd_without_compression_and_has_settings_by_traffic(method: str) -> None:
    for ours, plain in zip(
        trained(method, {"compressor": Identity()}, 3, 9), trained("sgd", {}, 3, 9), strict=True
    ):
        torch.testing.assert_close(ours, plain, rtol=0, atol=1e-12)
    assert algorithms()[method].at_traffic(1 / 4, world_size=8) == {"compressor": TopK(32)}


def test_the_method_sends_what_its_stages_say_and_its_workers_agree(method: str) -> None:
    def work(collectives: Collectives) -> torch.Tensor:
        model = make_model(torch.float32)
        optimizer = make_optimizer(
            method, model, own_settings(method, [BlockSparsifier(4)]), collectives
        )
        train(optimizer, model, collectives.rank, range(1, 8))
        assert optimizer.traffic.training() == optimizer.expected_traffic(7).training()
        assert optimizer.traffic.training_bits == 7 * 32 * 13
        assert optimizer.agree_after(7) and len(optimizer.early_messages(8)) == 1
        return optimizer.flat.parameters

    first, second = workers(work, 2)
    assert torch.equal(first, second)


def test_the_method_keeps_its_promises_as_a_file_of_its_own() -> None:
    subject = Subject(shown(METHOD), "my_method.py", "my_method")
    for promise in list(PROMISES)[:-1]:  # the last takes processes
        finding = finding_of(subject, promise)
        assert finding.verdict != "FAIL", finding


# A compressor.


@pytest.fixture
def stride(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """As the registry finds it: a file beside others, imported by its name."""
    package = tmp_path / "shown_compressors"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "stride.py").write_text(shown(COMPRESSOR))
    monkeypatch.syspath_prepend(tmp_path)
    (found,) = _classes("shown_compressors", SharedSupport)  # type: ignore[type-abstract]
    assert _by_name([(found.kind, found), *compressors().items()])["stride"] is found
    return found


def test_the_compressor_keeps_every_rth_coordinate_and_a_method_sends_them(stride: Any) -> None:
    layout = Layout.of([torch.empty(100)])
    kept = [
        stride(8).support(layout, Draw(0, step, "gradient")).gather(torch.arange(100.0))
        for step in range(64)
    ]
    assert {int(each[0]) for each in kept} == set(range(8))
    assert all((each.diff() == 8).all() and len(each) == 12 for each in kept)

    def work(collectives: Collectives) -> torch.Tensor:
        model = make_model(torch.float32)
        settings = {
            "gradient_compressor": stride(8),
            "error_compressor": stride(2),
            "reset_interval": 2,
        }
        optimizer = make_optimizer("cser", model, settings, collectives)
        train(optimizer, model, collectives.rank, range(1, 5))
        numel = optimizer.flat.layout.numel
        assert optimizer.traffic.training() == optimizer.expected_traffic(4).training()
        assert optimizer.traffic.training_bits == 32 * (4 * (numel // 8) + 2 * (numel // 2))
        return optimizer.flat.parameters

    assert all(torch.isfinite(each).all() for each in workers(work, 2))


def test_two_of_one_name_are_refused(stride: Any) -> None:
    with pytest.raises(ValueError, match="two classes are named 'stride'"):
        _by_name([("stride", stride), ("stride", stride)])


# A baseline.


@pytest.fixture
def baseline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "ddp_bf16.py").write_text(shown(BASELINE))
    monkeypatch.setattr(baselines_package, "__path__", [*baselines_package.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "cser_bench.algorithms.baselines.ddp_bf16", raising=False)
    registry.baselines.cache_clear()
    yield "ddp_bf16"
    registry.baselines.cache_clear()


def test_the_baseline_is_trained_and_sends_half(baseline: str, tmp_path: Path) -> None:
    config = small_config(baseline, num_workers=1)
    job = job_for(config, tmp_path / "results")
    assert attempt_as_rank(job, 0, f"file://{tmp_path}/rendezvous")
    result = read_run(job.folder).result
    assert result is not None and result.test_accuracy is not None and result.test_accuracy > 0.3
    assert result.traffic["gradient"].bits == 16 * 742 * 80 == footprint_of(config).bits
    assert baseline in registry.methods() and baseline not in registry.algorithms()


# A task.


@pytest.fixture
def letters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "letters.py").write_text(shown(TASK))
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "cser_bench.harness.tasks.letters", raising=False)
    return "letters"


def test_the_task_is_found_counted_and_learnt(letters: str, tmp_path: Path) -> None:
    task = find_task(letters)
    samples = task.load(None, TaskSpec(name=letters), torch.device("cpu"))
    assert isinstance(samples, TensorSamples) and len(samples.train_labels) == task.num_train
    held_out = task.load(
        None, TaskSpec(name=letters, held_out=64, num_train=520), torch.device("cpu")
    )
    assert len(held_out.train_labels) == 520
    config = small_config(
        task={"name": letters}, model={"name": "mlp", "options": {"hidden": 16}}, num_epochs=4
    )
    job = job_for(config, tmp_path / "results")
    attempt_stacked(job)
    accuracy = read_record(job.folder / "result.json", Result).test_accuracy
    assert accuracy is not None and accuracy > 5 / 26


# A question.


def test_the_question_is_answered_and_said() -> None:
    evidence = evidence_of(None)
    answer = run(QUESTION)["the_worst_seed"](evidence)
    long = evidence.first("search")
    assert long
    text = environment().from_string(shown(0, "jinja")).render(answer.numbers, rows=answer.rows)
    lowest = min(
        long.frames.done(row).min() for row in long.frames.rows["row"] if len(long.frames.done(row))
    )
    assert f"**{100 * lowest:.2f} %** is the lowest" in text and "`measured` " in text
    assert len(answer.frame) == sum(
        len(long.frames.done(row)) > 0 for row in long.frames.rows["row"]
    )


# Commands, of all pages.

ROOT = PAGE.parents[1]
PAGES = [
    "README.md",
    "results/README.md",
    "examples/README.md",
    *(path.relative_to(PAGE.parents[1]).as_posix() for path in sorted(PAGE.parent.rglob("*.md"))),
]


@pytest.mark.parametrize("page", PAGES)
def test_commands_on_a_page_are_there(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / page).read_text()
    for words in re.findall(r"(?:python -m |cser-)harness ([a-z][^`#|\n]*)", text):
        try:
            _parser("harness").parse_args(shlex.split(words.removesuffix(" \\")))
        except SystemExit as ended:
            assert ended.code == 0, f"{words}: {capsys.readouterr().err}"
    targets = set(re.findall(r"^([a-z0-9-]+):.*?##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert (
        set(re.findall(r"(?:`|^ *)make ([a-z][a-z0-9-]+)(?=[ `\n])", text, re.MULTILINE)) <= targets
    )
