"""Documents: the examples of docs/adding-*.md keep what they promise, and commands and files exist."""

from __future__ import annotations

import inspect
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
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
from cser_bench.algorithms.core.discovery import by_name, classes_in
from cser_bench.algorithms.core.layout import Layout
from cser_bench.algorithms.core.replica import Replica
from cser_bench.algorithms.registry import compressors
from cser_bench.commands import commands
from cser_bench.harness import models, tasks
from cser_bench.harness.plan.footprint import footprint_of
from cser_bench.harness.plan.plan import plan_experiment
from cser_bench.harness.records.store import Result, read_record, read_run
from cser_bench.harness.spec.run import TaskSpec
from cser_bench.harness.tasks.task import TensorSamples, find_task
from cser_bench.harness.workers.attempt import attempt_as_rank, attempt_stacked
from cser_bench.report.frame import read_frames
from cser_bench.report.trial import RIVALS
from tests.algorithms.problems import (
    make_model,
    make_optimizer,
    own_settings,
    train,
    trained,
    workers,
)
from tests.harness.support import job_for, small_config

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
METHOD = DOCS / "adding-a-method.md"


@dataclass(frozen=True)
class Section:
    """A section of the page on adding something, which is read as a page is."""

    heading: str

    def read_text(self) -> str:
        _, _, after = (
            (DOCS / "adding.md").read_text().partition(f"\n## {self.heading}\n")
        )
        section, _, _ = after.partition("\n## ")
        assert section
        return section


COMPRESSOR = Section("A compressor or a baseline")
NETWORK = Section("A network")
TASK = Section("A task")
EXPERIMENT = Section("An experiment")
PLOT = Section("A plot")


def shown(page: Path | Section, number: int = 0, language: str = "python") -> str:
    """One of a page's pieces in a language, as it stands there."""
    fence = re.compile(rf"^```{language}\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    found = fence.findall(page.read_text())
    return str(found[number])


def run(page: Path | Section, number: int = 0) -> dict[str, Any]:
    """What a piece of Python defines."""
    module = ModuleType("shown")
    sys.modules["shown"] = module
    source = shown(page, number)
    code = compile(source, str(page), "exec")
    exec(code, module.__dict__)
    return module.__dict__


# A method.


FIRST = 0
LARGER = 1
"""The page's methods: local SGD in twenty lines, and error feedback."""


def registered(number: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name by which one of the page's methods is found from now on."""
    own = None
    for value in run(METHOD, number).values():
        is_method = isinstance(value, type) and issubclass(value, DistributedOptimizer)
        if is_method and value is not DistributedOptimizer:
            own = value
    assert own is not None
    monkeypatch.setitem(algorithms(), own.name, own)
    return own.name


@pytest.fixture
def method(monkeypatch: pytest.MonkeyPatch) -> str:
    return registered(LARGER, monkeypatch)


def test_the_first_method_has_about_twenty_lines_and_is_local_sgd(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = shown(METHOD, FIRST)
    lines = [line for line in text.splitlines() if line.strip()]
    assert len(lines) <= 24
    name = registered(FIRST, monkeypatch)
    settings = {"sync_interval": 4}
    pairs = zip(
        trained(name, settings, 3, 9), trained("local_sgd", settings, 3, 9), strict=True
    )
    for ours, shipped in pairs:
        assert torch.equal(ours, shipped)
    found = algorithms()[name].at_traffic(1 / 4, world_size=8)
    assert found == settings


def test_the_method_is_sgd_without_compression_and_has_settings_by_traffic(
    method: str,
) -> None:
    for ours, plain in zip(
        trained(method, {"compressor": Identity()}, 3, 9),
        trained("sgd", {}, 3, 9),
        strict=True,
    ):
        torch.testing.assert_close(ours, plain, rtol=0, atol=1e-12)
    assert algorithms()[method].at_traffic(1 / 4, world_size=8) == {
        "compressor": TopK(32)
    }


def test_the_method_sends_what_its_stages_say_and_its_workers_agree(
    method: str,
) -> None:
    def work(collectives: Collectives) -> torch.Tensor:
        model = make_model(torch.float32)
        optimizer = make_optimizer(
            method, model, own_settings(method, [BlockSparsifier(4)]), collectives
        )
        train(optimizer, model, collectives.rank, range(1, 8))
        counted = optimizer.traffic.training()
        expected = optimizer.expected_traffic(7).training()
        assert counted == expected
        assert optimizer.traffic.training_bits == 7 * 32 * 13
        assert optimizer.agree_after(7)
        assert len(optimizer.early_messages(8)) == 1
        return optimizer.flat.parameters

    first, second = workers(work, 2)
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("number", "name"), [(FIRST, "my_method"), (LARGER, "my_feedback")]
)
def test_a_method_keeps_its_promises_as_a_file_of_its_own(
    number: int, name: str
) -> None:
    subject = Subject(shown(METHOD, number), "my_method.py", name)
    for promise in list(PROMISES)[:-1]:  # the last takes processes
        finding = finding_of(subject, promise)
        assert finding.verdict != "FAIL", finding


def test_what_check_is_said_to_print_are_its_promises() -> None:
    lines = shown(METHOD, 0, "text").splitlines()
    assert lines[1:-1] == [f"ok    {promise}" for promise in PROMISES]


def test_calls_of_a_replica_on_the_page_are_there_with_these_arguments() -> None:
    calls = re.findall(
        r"^\| `replica\.(\w+)\(([^)]*)\)` \|", METHOD.read_text(), re.MULTILINE
    )
    assert len(calls) == 10
    for name, words in calls:
        parts = [part for part in words.split(",") if part]
        given = [part.partition("=")[0].strip() for part in parts]
        # The page says v where the code says vector.
        given = ["vector" if word == "v" else word for word in given]
        assert (
            list(inspect.signature(getattr(Replica, name)).parameters)[1:] == given
        ), name


def test_the_table_that_try_is_said_to_print_has_the_scores_that_ship() -> None:
    scores = {}
    for rival in RIVALS:
        done = read_frames(rival.folder).done(rival.row)
        scores[rival.label] = f"{100 * done.mean():.2f} %"
    lines = shown(METHOD, 1, "text").splitlines()
    table = lines[2 : lines.index("")]
    found = {}
    for line in table:
        _, label, score, *_ = re.split(r" {2,}", line.strip())
        found[label] = score
    # The page's method is local SGD, but at two of its five seeds.
    del found["my_method"]
    assert found == scores


# A compressor.


@pytest.fixture
def stride(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """As the registry finds it: a file beside others, imported by its name."""
    package = tmp_path / "shown_compressors"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "stride.py").write_text(shown(COMPRESSOR, 0))
    monkeypatch.syspath_prepend(tmp_path)
    (found,) = classes_in("shown_compressors", SharedSupport)  # type: ignore[type-abstract]
    both = [(found.kind, found), *compressors().items()]
    assert by_name(both)["stride"] is found
    return found


def test_the_compressor_keeps_every_rth_coordinate_and_a_method_sends_them(
    stride: Any,
) -> None:
    layout = Layout.of([torch.empty(100)])
    kept = [
        stride(8).support(layout, Draw(0, step, "gradient")).gather(torch.arange(100.0))
        for step in range(64)
    ]
    starts = {int(each[0]) for each in kept}
    assert starts == set(range(8))
    for each in kept:
        assert (each.diff() == 8).all()
        assert len(each) == 12

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
        counted = optimizer.traffic.training()
        expected = optimizer.expected_traffic(4).training()
        assert counted == expected
        assert optimizer.traffic.training_bits == 32 * (
            4 * (numel // 8) + 2 * (numel // 2)
        )
        return optimizer.flat.parameters

    for each in workers(work, 2):
        assert torch.isfinite(each).all()


def test_two_of_one_name_are_refused(stride: Any) -> None:
    with pytest.raises(ValueError, match="two classes are named 'stride'"):
        by_name([("stride", stride), ("stride", stride)])


# A baseline.


@pytest.fixture
def baseline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "ddp_bf16.py").write_text(shown(COMPRESSOR, 1))
    monkeypatch.setattr(
        baselines_package, "__path__", [*baselines_package.__path__, str(tmp_path)]
    )
    monkeypatch.delitem(
        sys.modules, "cser_bench.algorithms.baselines.ddp_bf16", raising=False
    )
    registry.baselines.cache_clear()
    yield "ddp_bf16"
    registry.baselines.cache_clear()


def test_the_baseline_is_trained_and_sends_half(baseline: str, tmp_path: Path) -> None:
    config = small_config(baseline, num_workers=1)
    job = job_for(config, tmp_path / "results")
    assert attempt_as_rank(job, 0, f"file://{tmp_path}/rendezvous")
    result = read_run(job.folder).result
    assert result is not None
    assert result.test_accuracy is not None
    assert result.test_accuracy > 0.3
    bits = 16 * 742 * 80
    assert result.traffic["gradient"].bits == bits
    assert footprint_of(config).bits == bits
    assert baseline in registry.methods()
    assert baseline not in registry.algorithms()


# A task.


@pytest.fixture
def letters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "letters.py").write_text(shown(TASK))
    folders = [*tasks.__path__, str(tmp_path)]
    monkeypatch.setattr(tasks, "__path__", folders)
    monkeypatch.delitem(sys.modules, "cser_bench.harness.tasks.letters", raising=False)
    return "letters"


def test_the_task_is_found_counted_and_learnt(letters: str, tmp_path: Path) -> None:
    task = find_task(letters)
    spec = TaskSpec(name=letters)
    samples = task.load(None, spec, torch.device("cpu"))
    assert isinstance(samples, TensorSamples)
    assert len(samples.train_labels) == task.num_train
    held_out = task.load(
        None, TaskSpec(name=letters, held_out=64, num_train=520), torch.device("cpu")
    )
    assert len(held_out.train_labels) == 520
    config = small_config(
        task={"name": letters},
        model={"name": "mlp", "options": {"hidden": 16}},
        num_epochs=4,
    )
    job = job_for(config, tmp_path / "results")
    attempt_stacked(job)
    accuracy = read_record(job.folder / "result.json", Result).test_accuracy
    assert accuracy is not None
    assert accuracy > 5 / 26


# A network.


def test_the_network_is_built_by_a_spec_and_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "logistic.py").write_text(shown(NETWORK))
    folders = [*models.__path__, str(tmp_path)]
    monkeypatch.setattr(models, "__path__", folders)
    monkeypatch.delitem(
        sys.modules, "cser_bench.harness.models.logistic", raising=False
    )
    (entry,) = tomllib.loads(
        shown(NETWORK, 0, "py").replace(":", " =").rstrip(",\n")
    ).items()
    monkeypatch.setitem(models.NETWORKS, *entry)
    table = tomllib.loads(shown(NETWORK, 0, "toml"))
    model = table["model"]
    config = small_config(model=model, num_epochs=2)
    assert footprint_of(config).num_parameters == 64 * 10
    job = job_for(config, tmp_path / "results")
    assert attempt_stacked(job)
    accuracy = read_record(job.folder / "result.json", Result).test_accuracy
    assert accuracy is not None
    assert accuracy > 0.5


# An experiment.


def test_the_experiment_is_planned_and_its_contrast_counts(tmp_path: Path) -> None:
    path = tmp_path / "my_experiment.toml"
    path.write_text(shown(EXPERIMENT, 0, "toml"))
    plan = plan_experiment(str(path), tmp_path / "results")
    experiment = plan.experiment
    rows = experiment.rows
    assert [row.row for row in rows] == ["sgd", "local_sgd-4"]
    assert [len(row.runs) for row in rows] == [3, 3]
    (contrast,) = experiment.contrasts or ()
    assert contrast.kind == "non-inferiority"


# A plot.


def test_the_plot_has_a_dot_for_each_finished_run(tmp_path: Path) -> None:
    names = run(PLOT)
    folder = ROOT / "results" / "reference" / "first_look"
    names["draw"](folder, tmp_path / "seeds.png")
    assert (tmp_path / "seeds.png").stat().st_size
    assert (tmp_path / "seeds.pdf").stat().st_size
    frames = read_frames(folder)
    (axes,) = names["seeds_figure"](frames).axes
    (dots,) = axes.lines
    done = read_frames(folder).runs["status"] == "done"
    assert len(dots.get_xdata()) == done.sum()


# Files and commands, of all pages.

FILES = re.compile(
    r"`((?:algorithms|harness|report|slurm|tests|examples)/[\w/]+\.\w+)`"
)


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda path: path.name)
def test_files_that_a_page_names_are_there(page: Path) -> None:
    named = set(FILES.findall(page.read_text()))
    names = named - {"algorithms/x.py"}
    missing = [name for name in sorted(names) if not (ROOT / name).is_file()]
    assert not missing


def test_the_index_lists_every_page() -> None:
    index = (DOCS / "README.md").read_text()
    names = {path.name for path in DOCS.glob("*.md")} - {"README.md"}
    assert names <= set(re.findall(r"\]\(([\w-]+\.md)\)", index))


PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "results/README.md",
    "examples/README.md",
    *(path.relative_to(ROOT).as_posix() for path in sorted(DOCS.rglob("*.md"))),
]


@pytest.mark.parametrize("page", PAGES)
def test_commands_on_a_page_are_there(page: str) -> None:
    text = (ROOT / page).read_text()
    for words in re.findall(r"(?:python -m |cser-)harness ([a-z][^`#|\n]*)", text):
        name, *given = shlex.split(words.removesuffix(" \\"))
        # Raises where it has no such argument or option, or a value cannot be read.
        commands.commands[name].make_context(name, given)
    targets = set(
        re.findall(
            r"^([a-z0-9-]+):.*?##", (ROOT / "Makefile").read_text(), re.MULTILINE
        )
    )
    assert (
        set(
            re.findall(r"(?:`|^ *)make ([a-z][a-z0-9-]+)(?=[ `\n])", text, re.MULTILINE)
        )
        <= targets
    )
