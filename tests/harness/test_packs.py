"""Packed records: the same runs to the byte, every kind of damage refused in a sentence, nothing lost in between."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.__main__ import main
from harness.cli.show import show_status
from harness.plan.plan import Plan, make_plan
from harness.plan.tuning_records import outcome
from harness.records import packing, packs, store
from harness.records.packing import pack, unpack
from harness.records.packs import open_runs, parse, render
from harness.records.store import RUN_FILES, VERSION, RecordError, read_files, read_run
from harness.spec import RunConfig, run_id
from harness.spec_file import load_spec
from harness.workers.launch import launch, missing_runs, write_experiment
from report.frame import read_frames
from slurm.status import observe
from tests.harness.support import CSER, Quiet, launch_options, small_config, small_spec, write_spec

NAME = "made_up"


def made_up_run(config: RunConfig, status: str = "done") -> dict[str, bytes]:
    """The files of a run that was never done; its numbers are random."""
    identity = run_id(config)
    noise = random.Random(identity)
    run = {
        "version": VERSION,
        "run_id": identity,
        "experiment": NAME,
        "row": config.algorithm,
        "seed": config.seed,
        "config": config.model_dump(mode="json"),
        "attempts": [{"attempt": f"{noise.getrandbits(32):08x}", **ATTEMPT} for _ in range(noise.choice([1, 1, 2]))],
    }
    events = [
        {"step": step, "epoch": step / 40, "learning_rate": config.learning_rate, "train_loss": noise.random() ** 9}
        | {"test_loss": noise.choice([noise.random(), float("inf"), float("nan")]), "test_correct": step}
        | {
            "test_count": 400,
            "test_accuracy": step / 400,
            "bits_sent": 32 * step,
            "error_norm": noise.choice([None, 0.1]),
        }
        | {"worker_distance": 0.0, "wall_seconds": noise.random()}
        for step in (20, 40)
    ]
    score = noise.random() if status == "done" else None
    traffic = {
        "gradient": {"bits": 1280, "collectives": 40},
        "evaluation": {"bits": noise.randrange(99), "collectives": 2},
    }
    result = {"version": VERSION, "run_id": identity, "attempt": run["attempts"][-1]["attempt"], "status": status}
    result |= {"diverged_at_step": None if score else 3, "num_steps": 40, "num_parameters": 1, "world_size": 2}
    result |= dict.fromkeys(("train_loss", "test_loss", "test_accuracy"), score)
    result |= {"test_correct": 7 if score else None, "test_count": 400 if score else None, "traffic": traffic}
    result |= {
        "expected_traffic": {"gradient": traffic["gradient"]},
        "overall_ratio": 1.0,
        "wall_seconds": noise.random(),
    }
    result |= {"clock_seconds": {"compute": noise.random()}, "parameters_sha256": f"{noise.getrandbits(256):064x}"}
    return {
        "run.json": (json.dumps(run, indent=1) + "\n").encode(),
        "events.jsonl": "".join(json.dumps(event) + "\n" for event in events).encode(),
        "result.json": (json.dumps(result, indent=1) + "\n").encode(),
    }


ATTEMPT: dict[str, Any] = {
    "started_at": "2030-01-01T00:00:00Z",
    "resumed_from_step": 0,
    "host": "a host with a name that is long enough to be shared",
    "command": "python -m harness run made_up",
    "launch": "threads",
    "backend": "threads",
    "device": "cpu",
    "git_commit": "0" * 40,
    "git_diff_sha256": None,
    "python": "3.12.0",
    "packages": {"torch": "0.0", "numpy": "0.0"},
    "cpu": "ein Prozessor für Umlaute",
    "num_cpus": 2,
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


EXPERIMENT = {
    "version": VERSION,
    "name": NAME,
    "title": "Made up",
    "kind": "accuracy",
    "task": "blobs",
    "model": "small_cnn",
    "baseline": "sgd",
    "margin": 0.01,
    "confidence": 0.95,
    "seeds": [1, 2, 3],
    "rows": [],
    "tuning": None,
    "settings": {},
    "commands": [],
}


def tree(folder: Path) -> dict[str, bytes]:
    """Every file under a folder but locks, by its path."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def finished(folder: Path) -> dict[str, dict[str, bytes]]:
    return {path.name: read_files(path) for path in store.run_folders(folder) if (path / "result.json").exists()}


# The same to the byte

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
contents = (
    st.binary(max_size=60)
    | json_values.map(lambda value: (json.dumps(value, indent=1) + "\n").encode())
    | json_values.map(lambda value: json.dumps(value, ensure_ascii=False).encode(errors="surrogatepass"))
    | st.lists(st.fixed_dictionaries({"s": json_values, "a": st.floats()}), max_size=3).map(
        lambda events: "".join(json.dumps(event) + "\n" for event in events).encode()
    )
)


@settings(deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.dictionaries(st.sampled_from(RUN_FILES), contents), max_size=3))
def test_any_files_come_back_to_the_byte(files: list[dict[str, bytes]]) -> None:
    runs = {f"{number:012x}": each for number, each in enumerate([*files, *files])}
    given_back = parse(render(NAME, runs).encode(), Path("runs.jsonl"))
    assert {run: given_back.files(run) for run in given_back.lines} == runs


def test_folders_pack_and_unpack_to_the_byte(folder: Path) -> None:
    before, runs = tree(folder), finished(folder)
    done = pack(folder, remove_folders=True)
    assert (done.num_runs, done.added, done.removed, done.left) == (12, 12, 12, 2)
    assert not any((folder / run).exists() for run in runs)
    assert unpack(folder).written == 12
    assert finished(folder) == runs
    after = tree(folder)
    assert after.pop(packs.NAME)
    assert after == {name: data for name, data in before.items() if Path(name).name != "log.txt"}


def test_a_pack_is_much_smaller_than_its_folders(folder: Path) -> None:
    size = sum(len(data) for files in finished(folder).values() for data in files.values())
    assert pack(folder).path.read_bytes().isascii() and pack(folder).path.stat().st_size < 0.55 * size


def test_records_are_the_same_from_folders_from_the_pack_and_from_both(folder: Path) -> None:
    def seen() -> dict[str, str]:  # as text, in which nan is nan
        return {run: repr(record) for run, record in open_runs(folder).items()}

    before = seen()
    assert len(before) == 14 and before == {path.name: repr(read_run(path)) for path in store.run_folders(folder)}
    pack(folder)
    assert seen() == before
    pack(folder, remove_folders=True)
    assert seen() == before


def test_the_same_runs_give_the_same_bytes_in_whatever_order_they_were_packed(folder: Path, tmp_path: Path) -> None:
    runs = list(finished(folder).items())
    random.Random(3).shuffle(runs)
    by_and_by = tmp_path / "by_and_by"
    for part in (runs[:1], runs[1:7], runs[7:]):
        for _, files in part:
            write(by_and_by, files)
        shutil.copy(folder / "experiment.json", by_and_by)
        pack(by_and_by, remove_folders=True)
    assert pack(by_and_by).path.read_bytes() == pack(folder).path.read_bytes()
    assert pack(folder).added == 0


def test_a_folder_with_a_result_wins_and_one_without_does_not(folder: Path) -> None:
    pack(folder)
    one, other = sorted(finished(folder))[:2]
    path = folder / one / "result.json"
    path.write_bytes(path.read_bytes().replace(b'"compute"', b'"komputi"'))
    (folder / other / "result.json").unlink()
    runs = open_runs(folder)
    assert runs[one].result is not None and "komputi" in runs[one].result.clock_seconds
    assert runs[other].result is not None
    assert [unpack(folder).other, unpack(folder).unfinished] == [[folder / one], [folder / other]]
    assert pack(folder).added == 1
    assert "komputi" in open_runs(folder)[one].result.clock_seconds  # type: ignore[union-attr]


def test_runs_of_which_the_folder_knows_nothing(folder: Path) -> None:
    pack(folder, remove_folders=True)
    runs = open_runs(folder)
    assert "0" * 12 not in runs and runs.get("0" * 12) is None
    with pytest.raises(KeyError):
        runs["0" * 12]


# Bad input


def lines_of(folder: Path) -> list[str]:
    return (folder / packs.NAME).read_text().splitlines(keepends=True)


def resealed(folder: Path, change: Callable[[dict[str, Any]], None]) -> list[str]:
    """The pack's lines after a change to its last run by one who knows how digests are made."""
    header, *rest = lines_of(folder)
    line = json.loads(rest[-1])
    del line["sha256"]
    change(line)
    return [header, *rest[:-1], packs._sealed(json.loads(header)["sha256"], line)[0] + "\n"]


def with_other_rate(line: dict[str, Any]) -> None:
    run = json.dumps(line["files"]["run.json"])
    line["files"]["run.json"] = json.loads(re.sub(r"0\.(05|1),", "0.2,", run, count=1))


BAD: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "damaged line": (lambda f: [*lines_of(f)[:3], "\0\0\0\n", *lines_of(f)[4:]], "line 4, is damaged or was edited"),
    "edited line": (
        lambda f: [*lines_of(f)[:2], lines_of(f)[2].replace('"done"', '"dome"'), *lines_of(f)[3:]],
        "line 3, is damaged or was edited",
    ),
    "edited header": (lambda f: [lines_of(f)[0].replace("0" * 40, "1" * 40), *lines_of(f)[1:]], "line 1, is damaged"),
    "header without digest": (
        lambda f: [json.dumps({"format": 1, "experiment": NAME, "runs": 0}) + "\n"],
        "line 1, is damaged",
    ),
    "missing line": (lambda f: lines_of(f)[:-1], "holds 11 runs, its header says 12"),
    "line twice": (lambda f: [*lines_of(f), lines_of(f)[-1]], "holds 13 runs, its header says 12"),
    "line of another pack": (
        lambda f: [*lines_of(f)[:-1], render(NAME, {"0" * 12: {"run.json": b"{}"}}).splitlines(keepends=True)[1]],
        "line 13, is damaged or was edited",
    ),
    "torn": (lambda f: [*lines_of(f)[:-1], lines_of(f)[-1][:200]], "is torn"),
    "torn header": (lambda f: [lines_of(f)[0][:100]], "its first line is no header"),
    "empty": (lambda f: [], "its first line is no header"),
    "no pack": (lambda f: ["[1, 2]\n"], "its first line is no header"),
    "another version": (
        lambda f: [lines_of(f)[0].replace('"format":1', '"format":2')],
        "of format 2, this program reads",
    ),
    "another experiment": (
        lambda f: render("other", finished(f)).splitlines(keepends=True),
        "is a pack of the experiment other, the folder holds made_up",
    ),
    "id is not the hash": (lambda f: resealed(f, with_other_rate), "its config is that of run"),
    "not its tables": (
        lambda f: resealed(f, lambda line: line["files"].update({"run.json": [99, 1]})),
        "is damaged in",
    ),
    "a file elsewhere": (
        lambda f: resealed(f, lambda line: line["files"].update({"../escaped": "text"})),
        "no run has files ../escaped",
    ),
    "another run's files": (
        lambda f: resealed(f, lambda line: line.update(files=json.loads(lines_of(f)[1])["files"])),
        "holds run",
    ),
    "no result": (lambda f: resealed(f, lambda line: line["files"].pop("result.json")), "or no result of it"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_pack_that_cannot_be_used_is_refused_in_a_sentence_and_nothing_is_lost(
    what: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack(folder)
    spoil, words = BAD[what]
    (folder / packs.NAME).write_text("".join(spoil(folder)))
    for run in list(finished(folder))[6:]:
        shutil.rmtree(folder / run)
    before = tree(folder)
    with pytest.raises(RecordError) as error:
        dict(open_runs(folder))
    assert words in str(error.value) and str(folder / packs.NAME) in str(error.value)
    for command in (["pack", str(folder), "--remove-folders"], ["unpack", str(folder)]):
        assert main(command) == 1
        said = capsys.readouterr().err
        assert said.startswith("error: ") and words in said and said.count("\n") == 1
        assert tree(folder) == before


def test_folders_that_cannot_be_packed_are_refused(folder: Path, tmp_path: Path) -> None:
    def refused(words: str, at: Path = folder) -> None:
        before = tree(at)
        with pytest.raises(RecordError, match=words):
            pack(at, remove_folders=True)
        assert tree(at) == before

    refused("experiment.json is missing", tmp_path / "nowhere")
    first = folder / min(finished(folder))
    first.rename(folder / "stray")
    refused("stray/run.json belongs to run")
    (folder / "stray").rename(first)
    whole = (first / "run.json").read_text()
    (first / "run.json").write_text(whole.replace('"batch_size": 20', '"batch_size": 30'))
    refused("its config is that of run")
    (first / "run.json").write_text(whole.replace('"batch_size"', '"size"'))
    refused("has a config that this program cannot read")
    (first / "run.json").write_text(whole[:-5])
    refused("run.json is damaged")


def test_an_experiment_without_finished_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "experiment.json").write_text(json.dumps(EXPERIMENT))
    assert main(["pack", str(tmp_path)]) == 1 and "holds no finished run to pack" in capsys.readouterr().err
    assert main(["unpack", str(tmp_path)]) == 1 and "holds no runs.jsonl to unpack" in capsys.readouterr().err
    assert not list(tmp_path.glob("runs.jsonl"))


# Readers


def planned(tmp_path: Path, tuning: bool = False) -> tuple[Plan, Path]:
    """A plan and the folder of its experiment, with made-up results of all its runs."""
    spec = small_spec()
    spec["rows"] = spec["rows"][:2]
    if tuning:
        spec["rows"] = [{key: value for key, value in row.items() if key != "learning_rate"} for row in spec["rows"]]
    plan = make_plan(load_spec(write_spec(tmp_path, spec)), tmp_path, tuning)
    folder = write_experiment(plan, tmp_path)
    for run in plan.runs:
        write(folder, made_up_run(run.config))
    return plan, folder


def test_a_packed_run_is_done_in_every_respect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, folder = planned(tmp_path)

    def seen() -> tuple[object, ...]:
        show_status(plan, tmp_path)
        campaign = observe(folder, plan.experiment, None, {})
        return capsys.readouterr().out, read_frames(folder).runs.to_csv(), campaign, missing_runs(plan, folder)

    before = seen()
    shutil.rmtree(folder / plan.runs[0].run_id)
    assert missing_runs(plan, folder) == [plan.runs[0]]
    write(folder, made_up_run(plan.runs[0].config))
    pack(folder, remove_folders=True)
    assert seen() == before and before[-1] == []
    assert launch(plan, launch_options(tmp_path), Quiet()) == 0 and not any(folder.glob("*/run.json"))


def test_rates_are_chosen_from_packed_tuning_runs_alike(tmp_path: Path) -> None:
    plan, folder = planned(tmp_path, tuning=True)
    endings = [outcome(folder, run.run_id) for run in plan.runs]
    assert all(endings)
    pack(folder, remove_folders=True)
    assert [outcome(folder, run.run_id) for run in plan.runs] == endings


@pytest.mark.parametrize("what", ["edited line", "another experiment", "id is not the hash"])
def test_nothing_is_run_over_a_pack_that_cannot_be_used(what: str, tmp_path: Path) -> None:
    plan, folder = planned(tmp_path)
    pack(folder)
    spoil, words = BAD[what]
    (folder / packs.NAME).write_text("".join(spoil(folder)))
    for run in finished(folder):
        shutil.rmtree(folder / run)
    with pytest.raises(RecordError, match=words.removesuffix(NAME)):
        missing_runs(plan, folder)


# Killed in between


class Killed(BaseException):
    """Not even `except Exception` sees it."""


@pytest.fixture
def kill_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Have the process die before or after the n-th change that it makes on the disk."""

    def arm(number: int) -> None:
        steps = itertools.count()

        def dying(change: Callable[..., None]) -> Callable[..., None]:
            def step(*arguments: Any, **options: Any) -> None:
                if next(steps) == number:
                    raise Killed
                change(*arguments, **options)
                if next(steps) == number:
                    raise Killed

            return step

        monkeypatch.undo()
        for module, name in ((os, "replace"), (os, "fsync"), (shutil, "rmtree"), (os, "unlink"), (Path, "mkdir")):
            monkeypatch.setattr(module, name, dying(getattr(module, name)))
        monkeypatch.setattr(Path, "write_bytes", dying(Path.write_bytes))

    return arm


def test_killed_at_any_point_nothing_is_lost_and_the_same_command_goes_on(
    folder: Path, kill_at: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = finished(folder)
    records = {run: repr(record) for run, record in open_runs(folder).items()}

    def killed(command: Callable[[], object]) -> int:
        """How often the command was killed, at a later point each time, until it came to its end."""
        for number in itertools.count():
            kill_at(number)
            try:
                command()
            except Killed:
                monkeypatch.undo()
                assert {run: repr(record) for run, record in open_runs(folder).items()} == records
            else:
                monkeypatch.undo()
                return number
        raise AssertionError

    assert killed(lambda: pack(folder, remove_folders=True)) > 4
    assert not finished(folder)
    assert killed(lambda: unpack(folder)) > 4
    assert finished(folder) == runs
    assert not list(folder.glob(".*"))


def test_a_folder_that_changes_while_it_is_packed_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / max(finished(folder)) / "result.json"
    sync = packing.write_text_atomically

    def changed(*arguments: Any) -> None:
        sync(*arguments)
        path.write_bytes(path.read_bytes() + b"\n")

    monkeypatch.setattr(packing, "write_text_atomically", changed)
    with pytest.raises(RecordError, match="was changed while it was packed"):
        pack(folder, remove_folders=True)
    assert len(finished(folder)) == 12


def test_two_that_pack_at_once_wait_for_each_other(folder: Path) -> None:
    with packing._alone(folder), open(folder / "pack.lock", "w") as second, pytest.raises(BlockingIOError):
        fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
