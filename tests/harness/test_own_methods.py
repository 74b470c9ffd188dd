"""Methods from outside: by a file or an installed package, in plans, runs and records."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from cser_bench.harness.plan.outside import GROUP, outside_methods
from cser_bench.harness.plan.plan import plan_experiment
from cser_bench.harness.records.experiment import read_experiment
from cser_bench.harness.records.packs import pack_runs, read_runs
from cser_bench.harness.records.provenance import changes_digest
from cser_bench.harness.spec.errors import SpecError
from cser_bench.harness.spec.run import MethodSource, run_id
from cser_bench.harness.timing.methods import own_methods
from cser_bench.harness.train.method import method_in
from cser_bench.harness.workers.attempt import attempt_stacked
from cser_bench.harness.workers.launch import launch
from tests.harness.support import (
    ROOT,
    CommandLine,
    Quiet,
    Table,
    changed,
    job_for,
    launch_options,
    only,
    small_config,
    small_spec,
    write_spec,
)

EXAMPLE = ROOT / "examples" / "growing_local_sgd.py"
NAME = "growing_local_sgd"
SOURCE = EXAMPLE.read_text()


def own_spec() -> Table:
    """The small experiment with a row of the example's method in the place of CSER's."""
    spec = changed(small_spec(), "rows.1.settings", {"sync_interval": 3})
    growing = {"row": "growing", "label": "growing", "algorithm": NAME}
    spec["rows"][1] |= growing
    del spec["rows"][1]["ratio"]
    return spec


@pytest.mark.parametrize("workers", ["stacked", "processes"])
def test_a_file_is_planned_run_recorded_and_reported(
    workers: str, tmp_path: Path, cli: CommandLine
) -> None:
    path = write_spec(tmp_path, only(own_spec(), "growing"))
    file = tmp_path / "mine.py"
    file.write_text(SOURCE)
    results = tmp_path / "results"
    words = (path, "--results", results, "--methods", file)
    assert NAME in cli.out("plan", *words)
    cli.out("run", *words, "--workers", workers)
    folder = results / "small"
    experiment = read_experiment(folder)
    [recorded] = experiment.outside.values()
    assert recorded.file == "mine.py"
    assert experiment.families == {NAME: "local steps"}
    assert experiment.commands[0].endswith(f"--methods {file}")
    [run] = read_runs(folder).values()
    assert run.run.config["method_source"]["source"] == SOURCE
    assert run.run.config["method_source"]["sha256"] == recorded.sha256
    # 40 steps of rounds that end after 3, 6, 9, 12, 16, ... steps: counted by a slow loop.
    ends = {int(3 * n + 0.125 * n * (n - 1) / 2) for n in range(1, 40)}
    assert run.result is not None
    expected = sum(end <= 40 for end in ends)
    assert run.result.traffic["model"].collectives == expected
    if workers == "stacked":
        assert "wrote" in cli.out(
            "report", path, "--results", results, "--methods", file
        )
        file.write_text(SOURCE + "\n# edited")
        said = cli.refused("report", path, "--results", results, "--methods", file)
        assert "are not of this mine.py" in said
        assert pack_runs(folder) == (1, 1)


def test_a_run_depends_on_the_digest_alone_and_those_that_ship_on_nothing_new(
    tmp_path: Path,
) -> None:
    first = MethodSource.of("mine.py", SOURCE)
    renamed = MethodSource.of("other.py", SOURCE)
    edited = MethodSource.of("mine.py", SOURCE + "#")
    packaged = MethodSource.of("mine.py", SOURCE, "mine 1.0")
    table = {"sync_interval": 3}
    ids = {
        name: run_id(small_config(NAME, table, method_source=source))
        for name, source in {
            "first": first,
            "renamed": renamed,
            "edited": edited,
            "packaged": packaged,
        }.items()
    }
    assert ids["first"] == ids["renamed"]
    assert len(set(ids.values())) == 3
    with pytest.raises(ValueError, match=r"not that of its digest"):
        other_source = SOURCE + "#"
        MethodSource(file="mine.py", source=other_source, sha256=first.sha256)
    # The id of a run from before there were methods from outside.
    assert run_id(small_config()) == "4cd78f74059b"


def test_a_run_goes_on_with_the_code_that_it_began_with(tmp_path: Path) -> None:
    """The file is edited, and then gone, between two attempts: the plan has its source."""
    file = tmp_path / "mine.py"
    file.write_text(SOURCE)
    spec = write_spec(tmp_path, only(own_spec(), "growing"))
    plan = plan_experiment(str(spec), tmp_path, method_files=[str(file)])
    file.unlink()
    quiet = Quiet()
    assert launch(plan, launch_options(tmp_path), quiet) == 0
    assert quiet.ends == {"growing 1": None}
    again = write_spec(tmp_path, only(own_spec(), "growing"))
    file.write_text(SOURCE + "\n")
    edited = plan_experiment(str(again), tmp_path, method_files=[str(file)])
    assert edited.by_id.keys().isdisjoint(plan.by_id)


WRONG = {
    "this is no Python": "mine.py does not import: SyntaxError: invalid syntax (line 1)",
    "x = 1\nimport not_there_at_all": (
        "mine.py does not import: ModuleNotFoundError: No module named 'not_there_at_all' (line 2)"
    ),
    "raise SystemExit('out')": "mine.py does not import: SystemExit: out (line 1)",
    "x = 1": "mine.py has no method",
    "from cser_bench.algorithms import SGD": "mine.py has no method",
    SOURCE.replace(
        f'"{NAME}"', '"local_sgd"'
    ): "named 'local_sgd', as a method that ships is",
    SOURCE.replace(f'"{NAME}"', '"Growing SGD"'): "is named 'Growing SGD'",
    SOURCE.replace("    formula = ", "    # "): "does not say its formula",
    SOURCE
    + SOURCE[SOURCE.index("class ") :].replace(
        "class G", "class H"
    ): "two methods named",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_file_that_is_no_method_is_refused_in_a_sentence(
    text: str, tmp_path: Path, cli: CommandLine
) -> None:
    path = write_spec(tmp_path, own_spec())
    file = tmp_path / "mine.py"
    file.write_text(text)
    said = cli.refused("plan", path, "--methods", file)
    assert WRONG[text] in said


def test_files_that_are_not_there_taken_by_another_or_used_by_no_row_are_refused(
    tmp_path: Path, cli: CommandLine
) -> None:
    path = write_spec(tmp_path, own_spec())
    one = tmp_path / "one.py"
    one.write_text(SOURCE)
    two = tmp_path / "two.py"
    two.write_text(SOURCE)
    said = cli.refused("plan", path, "--methods", one, two)
    assert "as one in one.py is" in said
    assert "cannot be read" in cli.refused(
        "plan", path, "--methods", tmp_path / "three.py"
    )
    assert "no row has the algorithm" in cli.refused(
        "plan", "fashion_mnist", "--methods", one
    )
    assert "--methods FILE.py" in cli.refused("plan", path)
    assert "no installed package" in cli.refused("plan", path, "--methods", "three")
    table = own_spec() | {"outside": {}}
    outside = write_spec(tmp_path, table)
    assert NAME in cli.out("plan", outside, "--methods", one)
    source = MethodSource.of("one.py", SOURCE).model_dump()
    outside = write_spec(
        tmp_path, own_spec() | {"outside": {NAME: {**source, "package": "x"}}}
    )
    assert "outside is no key" in cli.refused("plan", outside)


def test_an_installed_package_names_its_methods_by_an_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "her_methods"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "growing.py").write_text(SOURCE)
    about = tmp_path / "her_methods-2.1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: her-methods\nVersion: 2.1\n"
    )
    (about / "entry_points.txt").write_text(f"[{GROUP}]\nhers = her_methods.growing\n")
    monkeypatch.syspath_prepend(tmp_path)
    outside = outside_methods(["hers"])
    [(name, source)] = outside.items()
    assert (name, source.file, source.package) == (
        NAME,
        "growing.py",
        "her-methods 2.1",
    )
    assert method_in(source, NAME).family == "local steps"


def test_a_failure_in_the_method_shows_its_line(tmp_path: Path) -> None:
    text = SOURCE.replace(
        "        replica.local_step_()\n", "        raise RuntimeError('hm')\n"
    )
    source = MethodSource.of("mine.py", text)
    config = small_config(NAME, {"sync_interval": 3}, method_source=source)
    job = job_for(config, tmp_path)
    assert not attempt_stacked(job)
    written = (job.folder / "failure.json").read_text()
    failure = json.loads(written)
    assert failure["message"] == "hm"
    assert "raise RuntimeError('hm')" in failure["traceback"]
    assert "mine.py" in failure["traceback"]


def test_files_that_git_does_not_track_are_provenance_where_they_are_run(
    tmp_path: Path,
) -> None:
    def git(*words: str) -> None:
        named = ["-c", "user.name=x", "-c", "user.email=x"]
        subprocess.run(
            ["git", *named, *words], cwd=tmp_path, check=True, capture_output=True
        )

    room = tmp_path / "algorithms"
    room.mkdir()
    (room / "sgd.py").write_text("x = 1\n")
    git("init")
    assert changes_digest(tmp_path) is None, "without a commit nothing is known"
    git("add", ".")
    git("commit", "-m", "first")
    assert changes_digest(room) is None
    (tmp_path / "scratch.py").write_text("never run\n")
    assert changes_digest(room) is None
    (room / "mine.py").write_text("x = 2\n")
    first = changes_digest(room)
    (room / "mine.py").write_text("x = 3\n")
    second = changes_digest(room)
    (room / "mine.py").unlink()
    (room / "sgd.py").write_text("x = 2\n")
    third = changes_digest(room)
    assert len({None, first, second, third}) == 4


def test_a_method_whose_sending_repeats_can_be_timed_and_no_other(
    tmp_path: Path,
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        SOURCE.replace("growth: NotNegative = 0.125", "growth: NotNegative = 0.0")
    )
    [timed] = own_methods([str(file)]).values()
    assert (timed.name, timed.settings, timed.period) == (
        NAME,
        {"sync_interval": 128},
        128,
    )
    assert timed.method_source is not None
    assert timed.method_source.file == "mine.py"
    with pytest.raises(SpecError, match="does not repeat every 128 steps"):
        own_methods([str(EXAMPLE)])
