"""Packed records: the same runs, all damage refused in a sentence, nothing lost in between, shipped packs whole."""

from __future__ import annotations

import copy
import itertools
import json
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from harness.cli.show import status_text
from harness.plan.plan import Plan, make_plan
from harness.records import packs, store
from harness.records.experiment import read_experiment
from harness.records.packs import NAME as PACK
from harness.records.packs import pack_runs, read_runs, render_pack, unpack_runs
from harness.records.store import VERSION, RecordError, read_run, read_run_files
from harness.spec import RunConfig, run_id
from harness.spec_file import load_spec
from harness.workers.launch import launch, missing_runs, write_experiment
from report.frame import read_frames
from slurm.campaign import statuses
from tests.harness.support import (
    CSER,
    ROOT,
    CommandLine,
    Killed,
    Quiet,
    killed_at,
    launch_options,
    shipped_run,
    small_config,
    small_spec,
    write_spec,
)

NAME = "made_up"


def made_up_run(config: RunConfig, status: str = "done") -> dict[str, bytes]:
    """The files of a run that was never done, after one that was; some of its numbers are random."""
    identity, files = run_id(config), copy.deepcopy(shipped_run())
    noise = random.Random(identity)
    names = {"run_id": identity, "experiment": NAME, "row": config.algorithm, "seed": config.seed}
    files["run"] |= names | {"config": config.model_dump(mode="json")}
    files["run"]["attempts"] *= noise.choice([1, 2])
    files["run"]["attempts"][0]["cpu"] = "ein Prozessor für Umlaute"
    for event in files["events"]:
        event |= {"train_loss": noise.random() ** 9, "test_loss": noise.choice([0.5, float("inf"), float("nan")])}
    files["result"] |= {"run_id": identity, "status": status, "wall_seconds": noise.random()}
    if status == "diverged":
        files["result"] |= dict.fromkeys(("train_loss", "test_loss", "test_correct", "test_accuracy"))
    return {
        "run.json": store.record_text(files["run"]).encode(),
        "events.jsonl": "".join(map(store.event_line, files["events"])).encode(),
        "result.json": store.record_text(files["result"]).encode(),
    }


CONFIGS = [
    small_config(algorithm, table, learning_rate=rate, seed=seed)
    for algorithm, table in (("sgd", {}), ("cser", CSER))
    for rate in (0.05, 0.1)
    for seed in (1, 2, 3)
]


def write(folder: Path, files: dict[str, bytes]) -> Path:
    path = folder / json.loads(files["run.json"])["run_id"]
    path.mkdir(parents=True)
    for name, data in files.items():
        (path / name).write_bytes(data)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An experiment with twelve finished runs, one that failed, and one that is on."""
    made = tmp_path / NAME
    for number, config in enumerate(CONFIGS):
        files = made_up_run(config, "diverged" if number == 4 else "done")
        if number == 5:  # a torn last line, and an older attempt's failure
            files["events.jsonl"] += b'{"step": 41, "caf\xc3'
            failure = {"version": VERSION, "run_id": run_id(config), "attempt": "x", "kind": "oom", "message": "m"}
            files["failure.json"] = json.dumps(failure | {"traceback": "", "step": None}).encode()
        if number == 6:  # no evaluation yet
            files["events.jsonl"] = b""
        (write(made, files) / "log.txt").write_text("what was printed")
    for seed in (8, 9):
        files = made_up_run(small_config(seed=seed))
        del files["result.json"]
        write(made, files)
    (made / "experiment.json").write_text(json.dumps(EXPERIMENT))
    return made


SHIPPED_PLAN = json.loads((ROOT / "results" / "fashion_mnist_tuning" / "experiment.json").read_text())
EXPERIMENT = SHIPPED_PLAN | {"name": NAME, "rows": []}


def tree(folder: Path) -> dict[str, bytes]:
    """Every file under a folder but locks, by its path."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def finished(folder: Path) -> dict[str, Any]:
    return {path.name: read_run_files(path) for path in store.run_folders(folder) if (path / "result.json").exists()}


# The same runs


def records(folder: Path) -> dict[str, str]:
    """All runs, as text, in which nan is nan."""
    return {run: repr(record) for run, record in read_runs(folder).items()}


def test_folders_come_back_as_they_were_but_for_a_torn_line_and_what_is_no_record(folder: Path) -> None:
    before, runs, read = tree(folder), finished(folder), records(folder)
    assert len(read) == 14 and read == {path.name: repr(read_run(path)) for path in store.run_folders(folder)}
    assert pack_runs(folder) == (12, 12) and records(folder) == read
    assert pack_runs(folder, remove_folders=True) == (12, 12) and records(folder) == read
    assert not any((folder / run).exists() for run in runs) and pack_runs(folder) == (12, 0)
    assert unpack_runs(folder) == 12 and records(folder) == read
    after = tree(folder)
    for line in after.pop(PACK).decode().splitlines()[1:]:  # plain JSON, that anything can read
        assert json.loads(line)["run"]["experiment"] == NAME and isinstance(json.loads(line)["events"], list)
    before = {name: data for name, data in before.items() if Path(name).name != "log.txt"}
    torn = next(name for name, data in before.items() if data.endswith(b"caf\xc3"))
    before[torn] = before[torn].rpartition(b"\n")[0] + b"\n"
    assert {name: data for name, data in after.items() if "failure" not in name} == {
        name: data for name, data in before.items() if "failure" not in name
    }


def test_a_folder_with_a_result_wins_and_one_without_does_not(folder: Path) -> None:
    pack_runs(folder)
    one, other = sorted(finished(folder))[:2]
    path = folder / one / "result.json"
    path.write_bytes(path.read_bytes().replace(b'"compute"', b'"komputi"'))
    (folder / other / "result.json").unlink()
    assert unpack_runs(folder) == 0 and not (folder / other / "result.json").exists()
    for _ in range(2):
        runs = read_runs(folder)
        assert runs[one].result is not None and "komputi" in runs[one].result.clock_seconds
        assert runs[other].result is not None
        pack_runs(folder)
        shutil.rmtree(folder / one, ignore_errors=True)


# Bad input


def lines_of(folder: Path) -> list[str]:
    return (folder / PACK).read_text().splitlines(keepends=True)


def changed(folder: Path, change: Callable[[dict[str, Any]], object]) -> list[str]:
    """The pack's lines after a change to its last run by one who knows how digests are made."""
    runs = finished(folder)
    change(runs[max(runs)])
    return render_pack(NAME, runs).splitlines(keepends=True)


def edited(lines: list[str], number: int, old: str, new: str) -> list[str]:
    assert old in lines[number]
    return [*lines[:number], lines[number].replace(old, new), *lines[number + 1 :]]


def exchanged(folder: Path) -> list[str]:
    """A run's line with the digest that it should have, below a header that knows another."""
    return [lines_of(folder)[0], *changed(folder, lambda files: files["run"].update(seed=99))[1:]]


BAD: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "edited line": (lambda f: edited(lines_of(f), 2, '"attempts"', '"attempt"'), "line 3, is damaged or was edited"),
    "torn": (lambda f: [*lines_of(f)[:-1], lines_of(f)[-1][:200]], "line 13, is damaged"),
    "exchanged line": (exchanged, "line 1, is damaged or was edited, or lines were lost"),
    "edited header": (lambda f: edited(lines_of(f), 0, NAME, "mad_up"), "line 1, is damaged"),
    "missing line": (lambda f: lines_of(f)[:-1], "lines were lost"),
    "line twice": (lambda f: [*lines_of(f), lines_of(f)[-1]], "line 1, is damaged"),
    "last end of line lost": (lambda f: [*lines_of(f)[:-1], lines_of(f)[-1].rstrip("\n")], "line 13, is damaged"),
    "empty": (lambda f: [], "line 1, is damaged"),
    "no pack": (lambda f: ["[1, 2]\n"], "line 1, is damaged"),
    "another version": (lambda f: [packs._line('"format":3')], "of format 3, this program"),
    "id is not the hash": (
        lambda f: changed(f, lambda files: files["run"]["config"].update(learning_rate=0.2)),
        "its config is that of run",
    ),
    "another shape": (lambda f: changed(f, lambda files: files.update(run=[99, 1])), "run.json has a bad field"),
    "another run's": (lambda f: changed(f, lambda files: files.update(finished(f)[min(finished(f))])), "holds run"),
    "no result": (lambda f: changed(f, lambda files: files.pop("result")), "without a result"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_pack_that_cannot_be_used_is_refused_in_a_sentence_and_nothing_is_lost(
    what: str, folder: Path, cli: CommandLine
) -> None:
    pack_runs(folder)
    spoil, words = BAD[what]
    (folder / PACK).write_text("".join(spoil(folder)))
    for run in list(finished(folder))[6:]:
        shutil.rmtree(folder / run)
    before = tree(folder)
    with pytest.raises(RecordError) as error:
        read_runs(folder)
    assert words in str(error.value) and str(folder) in str(error.value)
    for command in (["pack", folder, "--remove-folders"], ["unpack", folder]):
        assert words in cli.refused(*command, code=1)
        assert tree(folder) == before


def test_folders_that_cannot_be_packed_are_refused(folder: Path, tmp_path: Path, cli: CommandLine) -> None:
    def refused(words: str, at: Path = folder) -> None:
        before = tree(at)
        assert words in cli.refused("pack", at, "--remove-folders", code=1)
        assert tree(at) == before

    refused("experiment.json is missing", tmp_path / "nowhere")
    first = folder / min(finished(folder))
    first.rename(folder / "stray")
    refused("stray/run.json was edited or moved")
    (folder / "stray").rename(first)
    whole = (first / "run.json").read_text()
    for change, words in (
        (whole.replace('"batch_size": 20', '"batch_size": 30'), "its config is that of run"),
        (whole.replace('"batch_size"', '"size"'), "has a config that this program cannot read"),
        (whole[:-5], "run.json is damaged"),
    ):
        (first / "run.json").write_text(change)
        refused(words)
    for run in store.run_folders(folder):
        shutil.rmtree(run)
    refused("holds no finished run to pack")
    assert "holds no runs.jsonl to unpack" in cli.refused("unpack", folder, code=1)


# Readers


def planned(tmp_path: Path) -> tuple[Plan, Path]:
    """A plan and the folder of its experiment, with made-up results of all its runs."""
    spec = small_spec()
    spec["rows"] = spec["rows"][:2]
    plan = make_plan(load_spec(write_spec(tmp_path, spec)), tmp_path)
    folder = write_experiment(plan, tmp_path)
    for run in plan.runs:
        write(folder, made_up_run(run.config))
    return plan, folder


def test_a_packed_run_is_done_in_every_respect(tmp_path: Path) -> None:
    plan, folder = planned(tmp_path)

    def seen() -> tuple[object, ...]:
        text = status_text(statuses(folder, plan.runs), num_workers=2)
        return text, read_frames(folder).runs.to_csv(), missing_runs(plan, folder)

    before = seen()
    shutil.rmtree(folder / plan.runs[0].run_id)
    assert missing_runs(plan, folder) == [plan.runs[0]]
    write(folder, made_up_run(plan.runs[0].config))
    pack_runs(folder, remove_folders=True)
    assert seen() == before and before[-1] == []
    assert launch(plan, launch_options(tmp_path), Quiet()) == 0 and not any(folder.glob("*/run.json"))


# Killed in between


def test_killed_at_any_point_nothing_is_lost_and_the_same_command_goes_on(folder: Path) -> None:
    runs, before = finished(folder), records(folder)

    def killed(command: Callable[[], object]) -> int:
        """How often the command was killed, at a later point each time, until it came to its end."""
        for number in itertools.count():
            with killed_at(number) as changes, suppress(Killed):
                command()
            assert records(folder) == before
            if "killed" not in changes:
                return number
        raise AssertionError

    assert killed(lambda: pack_runs(folder, remove_folders=True)) > 4
    assert not finished(folder)
    assert killed(lambda: unpack_runs(folder)) > 4
    assert repr(finished(folder)) == repr(runs)
    assert not list(folder.glob(".*"))


def test_a_folder_that_changes_while_it_is_packed_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / max(finished(folder)) / "result.json"
    write = store.write_text_atomically

    def rewritten(*arguments: Any) -> None:
        write(*arguments)
        path.write_bytes(path.read_bytes().replace(b'"compute"', b'"komputi"'))

    monkeypatch.setattr(store, "write_text_atomically", rewritten)
    pack_runs(folder, remove_folders=True)
    assert list(finished(folder)) == [path.parent.name]


# Packs that ship

SHIPPED = sorted(path.parent for path in (ROOT / "results").rglob(PACK))


@pytest.mark.parametrize("shipped", SHIPPED, ids=[str(folder.relative_to(ROOT)) for folder in SHIPPED])
def test_a_shipped_pack_is_whole_and_packs_again_to_its_bytes(shipped: Path, tmp_path: Path) -> None:
    planned = {run_id for row in read_experiment(shipped).rows for run_id in row.runs.values()}
    packed = set(packs.read_pack(shipped))
    assert packed <= planned
    # An experiment that is not done yet ships its runs as they come, and no report.
    if (shipped / "report.md").exists() or shipped.name.endswith("_tuning"):
        assert packed == planned
    for name in ("experiment.json", PACK):
        shutil.copy(shipped / name, tmp_path)
    assert unpack_runs(tmp_path) == len(packed)
    (tmp_path / PACK).unlink()
    assert repr(read_runs(tmp_path)).replace(str(tmp_path), str(shipped)) == repr(read_runs(shipped))
    pack_runs(tmp_path)
    assert (tmp_path / PACK).read_bytes() == (shipped / PACK).read_bytes()
