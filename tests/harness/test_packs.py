"""Packed records: the same runs, all damage refused in a sentence, nothing lost in between, shipped
packs whole."""

from __future__ import annotations

import copy
import gzip
import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cser_bench.harness.cli.show import status_text
from cser_bench.harness.plan.plan import make_plan
from cser_bench.harness.records import packs, store
from cser_bench.harness.records.experiment import read_experiment
from cser_bench.harness.records.packs import NAME as PACK
from cser_bench.harness.records.packs import (
    pack_runs,
    read_checked_result,
    read_pack,
    read_runs,
    render_pack,
    unpack_runs,
)
from cser_bench.harness.records.shipped import shipped_experiments
from cser_bench.harness.records.store import (
    VERSION,
    RecordError,
    read_run,
    read_run_files,
)
from cser_bench.harness.spec.spec_file import load_spec
from cser_bench.harness.workers.launch import launch
from cser_bench.harness.workers.prepare import missing_runs
from cser_bench.report.frame import read_frames
from cser_bench.slurm.campaign import statuses
from tests.harness.support import (
    ROOT,
    CommandLine,
    Killed,
    Quiet,
    done,
    killed_at,
    launch_options,
    only,
    small_config,
    small_spec,
    write_spec,
)

TUNING = ROOT / "results" / "fashion_mnist_tuning"
NAME = read_experiment(TUNING).name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An experiment with twelve finished runs, of which one failed before, and two that are on."""
    shipped = read_pack(TUNING)
    shutil.copy(TUNING / "experiment.json", tmp_path)
    (tmp_path / PACK).write_text(
        render_pack(NAME, {run: shipped[run] for run in sorted(shipped)[:14]})
    )
    unpack_runs(tmp_path)
    (tmp_path / PACK).unlink()
    *_, fifth, sixth, seventh = list(store.run_folders(tmp_path))[:7]
    events = (fifth / "events.jsonl").read_text()
    (fifth / "events.jsonl").write_text(
        re.sub(r'"worker_distance": [^,]+', '"worker_distance": NaN', events)
    )
    (sixth / "events.jsonl").write_bytes(
        (sixth / "events.jsonl").read_bytes() + b'{"step": 41, "caf\xc3'
    )
    failure = {
        "version": VERSION,
        "run_id": sixth.name,
        "attempt": "x",
        "kind": "oom",
        "message": "für Umlaute",
    }
    (sixth / "failure.json").write_text(
        json.dumps(failure | {"traceback": "", "step": None})
    )
    (seventh / "log.txt").write_text("what was printed")
    *_, before_its_first_score, torn = store.run_folders(tmp_path)
    for run in (before_its_first_score, torn):
        (run / "result.json").unlink()
    (before_its_first_score / "events.jsonl").write_text("")
    torn_events = torn / "events.jsonl"
    torn_events.write_bytes(torn_events.read_bytes()[:-20])
    return tmp_path


def tree(folder: Path) -> dict[str, bytes]:
    """Every file under a folder but locks, by its path."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix != ".lock":
            name = str(path.relative_to(folder))
            found[name] = path.read_bytes()
    return found


def finished(folder: Path) -> dict[str, Any]:
    found = {}
    for path in store.run_folders(folder):
        if (path / "result.json").exists():
            found[path.name] = read_run_files(path)
    return found


# The same runs


def records(folder: Path) -> dict[str, str]:
    """All runs, as text, in which nan is nan."""
    return {run: repr(record) for run, record in read_runs(folder).items()}


def test_folders_come_back_as_they_were_but_for_a_torn_line_and_what_is_no_record(
    folder: Path,
) -> None:
    before = tree(folder)
    runs = finished(folder)
    read = records(folder)
    assert len(read) == 14
    by_folder = {}
    for path in store.run_folders(folder):
        by_folder[path.name] = repr(read_run(path))
    assert read == by_folder
    assert pack_runs(folder) == (12, 12)
    assert records(folder) == read
    assert pack_runs(folder, remove_folders=True) == (12, 12)
    assert records(folder) == read
    for run in runs:
        assert not (folder / run).exists()
    assert pack_runs(folder) == (12, 0)
    assert unpack_runs(folder) == 12
    assert records(folder) == read
    after = tree(folder)
    # Plain JSON, that anything can read
    _, *lines = after.pop(PACK).decode().splitlines()
    for line in lines:
        run = json.loads(line)
        assert run["run"]["experiment"] == NAME
        assert isinstance(run["events"], list)
    before = {
        name: data for name, data in before.items() if Path(name).name != "log.txt"
    }
    torn = next(name for name, data in before.items() if data.endswith(b"caf\xc3"))
    whole_lines, _, _ = before[torn].rpartition(b"\n")
    before[torn] = whole_lines + b"\n"
    assert without_failures(after) == without_failures(before)


def without_failures(files: dict[str, bytes]) -> dict[str, bytes]:
    """The files whose names do not speak of a failure."""
    return {name: data for name, data in files.items() if "failure" not in name}


def test_a_folder_with_a_result_wins_and_one_without_does_not(folder: Path) -> None:
    pack_runs(folder)
    one, other = sorted(finished(folder))[:2]
    path = folder / one / "result.json"
    rename_a_clock(path)
    (folder / other / "result.json").unlink()
    assert unpack_runs(folder) == 0
    assert not (folder / other / "result.json").exists()
    for _ in range(2):
        runs = read_runs(folder)
        assert runs[one].result is not None
        assert "komputi" in runs[one].result.clock_seconds
        assert runs[other].result is not None
        pack_runs(folder)
        shutil.rmtree(folder / one, ignore_errors=True)


def rename_a_clock(path: Path) -> None:
    text = path.read_bytes()
    path.write_bytes(text.replace(b'"compute"', b'"komputi"'))


# Bad input


def lines_of(folder: Path) -> list[str]:
    return (folder / PACK).read_text().splitlines(keepends=True)


def changed(folder: Path, change: Callable[[dict[str, Any]], object]) -> list[str]:
    """The pack's lines after a change to its last run by one who knows how digests are made."""
    runs = finished(folder)
    change(runs[max(runs)])
    return render_pack(NAME, runs).splitlines(keepends=True)


def exchanged(folder: Path) -> list[str]:
    """A run's line with the digest that it should have, below a header that knows another."""
    return [
        lines_of(folder)[0],
        *changed(folder, lambda files: files["run"].update(seed=99))[1:],
    ]


BAD: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "edited": (
        lambda f: [line.replace('"attempts"', '"attempt"') for line in lines_of(f)],
        "line 2, is damaged",
    ),
    "torn": (
        lambda f: [*lines_of(f)[:-1], lines_of(f)[-1][:200]],
        "line 13, is damaged",
    ),
    "exchanged line": (
        exchanged,
        "line 1, is damaged or was edited, or lines were lost",
    ),
    "missing line": (lambda f: lines_of(f)[:-1], "lines were lost"),
    "another version": (
        lambda f: [packs._line('"format":3')],
        "of format 3, this program",
    ),
    "id is not the hash": (
        lambda f: changed(
            f, lambda files: files["run"]["config"].update(learning_rate=0.2)
        ),
        "its config is that of run",
    ),
    "no run's id": (
        lambda f: render_pack(
            NAME, {f"../../{max(finished(f))}": finished(f)[max(finished(f))]}
        ).splitlines(True),
        "line 2, names the run '../../",
    ),
    "an absolute path for an id": (
        lambda f: render_pack(
            NAME, {f"{f}/{max(finished(f))}": finished(f)[max(finished(f))]}
        ).splitlines(True),
        "which is no run's id",
    ),
    "no id": (
        lambda f: [packs._line('"format":2'), packs._line('"run":1')],
        "names the run None",
    ),
    "no format": (lambda f: [packs._line('"runs":0')], "of format None, this program"),
    "a digit of an accuracy": (
        lambda f: changed(f, lambda files: files["result"].update(test_accuracy=0.999)),
        "test_accuracy is 0.999, but ",
    ),
    "a digit of a score on the way": (
        lambda f: changed(f, lambda files: files["events"][0].update(test_correct=1)),
        "events.jsonl, line 1, is damaged: test_accuracy is ",
    ),
    "no result": (
        lambda f: changed(f, lambda files: files.pop("result")),
        "without a result",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_a_pack_that_cannot_be_used_is_refused_in_a_sentence_and_nothing_is_lost(
    what: str, folder: Path, cli: CommandLine
) -> None:
    pack_runs(folder)
    spoil, words = BAD[what]
    spoilt = "".join(spoil(folder))
    (folder / PACK).write_text(spoilt)
    for run in list(finished(folder))[6:]:
        shutil.rmtree(folder / run)
    before = tree(folder)
    for command in (["pack", folder, "--remove-folders"], ["unpack", folder]):
        said = cli.refused(*command, code=1)
        assert words in said
        assert str(folder) in said
        assert tree(folder) == before


def with_another_batch_size(text: str) -> str:
    return text.replace('"batch_size": 16', '"batch_size": 30')


def cut(text: str) -> str:
    return text[:-5]


SPOILT: list[tuple[str, Callable[[str], str], str]] = [
    ("stray", str, "stray/run.json was edited or moved"),
    ("", with_another_batch_size, "its config is that of run"),
    ("", cut, "run.json is damaged"),
]


@pytest.mark.parametrize(
    ("name", "spoil", "words"), SPOILT, ids=[words for *_, words in SPOILT]
)
def test_folders_that_cannot_be_packed_are_refused(
    name: str, spoil: Callable[[str], str], words: str, folder: Path, cli: CommandLine
) -> None:
    run_folder = folder / min(finished(folder))
    run_folder = run_folder.rename(folder / (name or run_folder.name))
    path = run_folder / "run.json"
    path.write_text(spoil(path.read_text()))
    before = tree(folder)
    said = cli.refused("pack", folder, "--remove-folders", code=1)
    assert words in said
    assert tree(folder) == before


def test_where_there_is_nothing_to_pack_or_unpack_it_is_said(
    tmp_path: Path, cli: CommandLine
) -> None:
    assert "holds no experiment.json" in cli.refused("pack", tmp_path)
    shutil.copy(TUNING / "experiment.json", tmp_path)
    assert "holds no finished run to pack" in cli.refused("pack", tmp_path)
    assert "holds no runs.jsonl to unpack" in cli.refused("unpack", tmp_path)


# Readers


def test_a_score_that_was_edited_or_is_lost_is_said(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = folder / min(finished(folder))
    lines = (whole / "events.jsonl").read_text().splitlines(keepends=True)
    result = (whole / "result.json").read_text()
    loss = json.loads(result)["test_loss"]
    run = (whole / "run.json").read_text()
    bits = json.loads(lines[-1])["bits_sent"]
    fewer = json.loads(result)
    for counted in ("traffic", "expected_traffic"):
        fewer[counted]["gradient"]["bits"] -= 1
    sent = [
        re.sub(r'"bits_sent": \d+', f'"bits_sent": {bits + 1}', line) for line in lines
    ]
    edits: list[tuple[str, str | None, str]] = [
        (
            "result.json",
            re.sub(r'"test_accuracy": [^,]+', '"test_accuracy": 0.999', result),
            "0.999, but ",
        ),
        (
            "result.json",
            result.replace(f'"test_loss": {loss}', f'"test_loss": {loss / 10}'),
            "says test_loss = ",
        ),
        (
            "result.json",
            re.sub(r'"bits": [1-9]\d*', '"bits": 7', result, count=1),
            "differ in 'gradient'",
        ),
        ("result.json", json.dumps(fewer), f"of {bits - 1} in result.json"),
        (
            "events.jsonl",
            "".join([sent[0], *lines[1:]]),
            f"says that {bits + 1} bits were sent",
        ),
        (
            "events.jsonl",
            "".join([*lines[:-1], sent[-1]]),
            f"says that {bits + 1} bits were sent",
        ),
        (
            "run.json",
            re.sub(r'(\n "seed": )\d+', r"\g<1>7", run),
            "run.json says seed = 7",
        ),
        ("events.jsonl", "".join(lines[:-1]), f"lacks 1 of {len(lines)} scores"),
        ("events.jsonl", "".join(lines)[:-20], f"lacks 1 of {len(lines)} scores"),
        ("events.jsonl", "".join(lines[1:]), f"lacks 1 of {len(lines)} scores"),
        ("events.jsonl", None, f"lacks {len(lines)} of {len(lines)} scores"),
    ]
    for number, (name, text, words) in enumerate(edits):
        place = tmp_path_factory.mktemp(f"edit{number}")
        shutil.copytree(whole, place / whole.name)
        assert len(read_runs(place)) == 1
        path = place / whole.name / name
        if text is None:
            path.unlink()
        else:
            path.write_text(text)
        with pytest.raises(RecordError, match=re.escape(words)):
            read_runs(place)


def _replaced(text: str, pattern: str, by: str) -> str:
    changed, count = re.subn(pattern, by, text, count=1)
    assert count == 1, pattern
    return changed


def test_the_digest_of_a_new_run_finds_edits_that_contradict_nothing(
    tmp_path: Path,
) -> None:
    """Also after it was packed and unpacked, and of a run that went on after a torn line."""
    whole = done(small_config(), tmp_path).folder
    files = {}
    for name in ("events.jsonl", "result.json", "run.json"):
        files[name] = (whole / name).read_text()
    assert len(read_runs(tmp_path)) == 1
    edits = [
        ("events.jsonl", r'"test_loss": [^,]+', '"test_loss": 0.5'),
        ("events.jsonl", r'"bits_sent": \d+', '"bits_sent": 1'),
        ("events.jsonl", r'"worker_distance": [^,]+', '"worker_distance": 0.5'),
        ("result.json", r'"collectives": \d+', '"collectives": 1'),
        ("result.json", r'"wall_seconds": [^,]+', '"wall_seconds": 0.5'),
        ("run.json", r'"git_commit": [^,]+', '"git_commit": "another"'),
        ("run.json", r'"row": [^,]+', '"row": "another"'),
    ]
    for name, pattern, by in edits:
        text = _replaced(files[name], pattern, by)
        if name == "result.json" and "collectives" in pattern:
            expected = r'("expected_traffic"[^}]*"collectives": )\d+'
            text = _replaced(text, expected, r"\g<1>1")
        (whole / name).write_text(text)
        with pytest.raises(RecordError, match="has another digest"):
            read_runs(tmp_path)
        (whole / name).write_text(files[name])
    assert len(read_runs(tmp_path)) == 1


def test_an_attempt_that_was_entered_after_the_result_changes_nothing(
    tmp_path: Path,
) -> None:
    """As a job's that Slurm starts anew, whose node does not see the result yet."""
    whole = done(small_config(), tmp_path).folder
    run = json.loads((whole / "run.json").read_text())
    run["attempts"].append(run["attempts"][0] | {"attempt": "later"})
    (whole / "run.json").write_text(json.dumps(run))
    assert len(read_runs(tmp_path)[whole.name].run.attempts) == 2


def test_a_config_of_another_run_under_the_same_id_is_refused_by_all_that_read(
    folder: Path,
) -> None:
    whole = folder / min(finished(folder))
    text = (whole / "run.json").read_text()
    rate = r'("learning_rate": )[^,]+'
    edited = re.sub(rate, r"\g<1>0.012345", text, count=1)
    assert edited != text
    (whole / "run.json").write_text(edited)
    for read in (lambda: read_runs(folder), lambda: read_checked_result(whole)):
        with pytest.raises(RecordError, match="its config is that of run"):
            read()


def test_scores_that_a_run_has_lost_which_diverged_after_them_are_missed_too(
    tmp_path: Path,
) -> None:
    pack = read_pack(TUNING)
    late = []
    for run, files in pack.items():
        has_diverged = files["result"]["status"] == "diverged"
        if has_diverged and len(files["events"]) > 1:
            late.append(run)
    run = late[0]
    files = copy.deepcopy(pack[run])
    files["events"].pop()
    text = render_pack(NAME, {run: files})
    (tmp_path / PACK).write_text(text)
    with pytest.raises(RecordError, match="lacks 1 of "):
        read_runs(tmp_path)


def test_a_packed_run_is_done_in_every_respect(tmp_path: Path) -> None:
    table = only(small_spec(), "sgd")
    spec = load_spec(write_spec(tmp_path, table))
    plan = make_plan(spec, tmp_path)
    assert launch(plan, launch_options(tmp_path), Quiet()) == 0
    folder = tmp_path / "small"

    def seen() -> tuple[object, ...]:
        text = status_text(statuses(folder, plan.runs), num_workers=2)
        runs = read_frames(folder).runs.to_csv()
        return text, runs, missing_runs(plan, folder)

    before = seen()
    pack_runs(folder, remove_folders=True)
    assert seen() == before
    assert before[-1] == []
    assert launch(plan, launch_options(tmp_path), Quiet()) == 0
    assert not any(folder.glob("*/run.json"))


def test_another_clone_goes_on_with_what_is_committed_of_an_unfinished_experiment(
    tmp_path: Path,
) -> None:
    def git(*words: str | Path) -> str:
        command = ["git", "-C", str(tmp_path), *(str(word) for word in words)]
        ended = subprocess.run(command, check=True, capture_output=True, text=True)
        return ended.stdout

    git("init", "--quiet")
    shutil.copy(ROOT / ".gitignore", tmp_path)
    results = tmp_path / "results" / "unfinished"
    tuned = only(small_spec(), "sgd")
    del tuned["rows"][0]["learning_rate"]
    tuned["tuning"] = {"grid": [0.01, 0.1], "seeds": [101], "held_out": 400}
    spec = load_spec(write_spec(tmp_path, tuned))
    trials = make_plan(spec, results, tuning=True)
    one_trial = replace(trials, runs=trials.runs[:1])
    assert launch(one_trial, launch_options(results), Quiet()) == 0
    folder = results / trials.experiment.name
    pack_runs(folder, remove_folders=True)
    # One that is on has a folder, which no commit takes.
    unpack_runs(folder)

    git("add", "results")
    kept = git("ls-files").split()
    names = sorted(Path(name).name for name in kept)
    assert names == ["experiment.json", PACK]
    clone = tmp_path / "clone"
    for name in kept:
        copied = clone / name
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / name, copied)
    results_there = clone / "results" / "unfinished"
    there = make_plan(spec, results_there, tuning=True)
    left = missing_runs(there, results_there / there.experiment.name)
    not_run = trials.runs[1:]
    assert [run.run_id for run in left] == [run.run_id for run in not_run]


# Killed in between


def test_killed_at_any_point_nothing_is_lost_and_the_same_command_goes_on(
    folder: Path,
) -> None:
    runs = finished(folder)
    before = records(folder)

    def killed(command: Callable[[], object]) -> int:
        """How often the command was killed, at a later point each time, until it came to its
        end."""
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


def test_a_folder_that_changes_while_it_is_packed_stays(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / max(finished(folder)) / "result.json"
    write = packs.write_text_atomically

    def rewritten(*arguments: Any) -> None:
        write(*arguments)
        rename_a_clock(path)

    monkeypatch.setattr(packs, "write_text_atomically", rewritten)
    pack_runs(folder, remove_folders=True)
    assert list(finished(folder)) == [path.parent.name]


# Compressed packs, as installed


def test_a_compressed_pack_is_read_as_it_was(tmp_path: Path) -> None:
    shutil.copy(TUNING / "experiment.json", tmp_path)
    packed = (TUNING / PACK).read_bytes()
    (tmp_path / f"{PACK}.gz").write_bytes(gzip.compress(packed))
    assert read_pack(tmp_path)
    assert read_pack(tmp_path) == read_pack(TUNING)
    runs = read_runs(tmp_path)
    assert runs.keys() == read_runs(TUNING).keys()


def test_a_compressed_pack_that_was_cut_is_refused(tmp_path: Path) -> None:
    path = tmp_path / f"{PACK}.gz"
    whole = gzip.compress((TUNING / PACK).read_bytes())
    half = len(whole) // 2
    path.write_bytes(whole[:half])
    words = rf"^{re.escape(str(path))} is damaged .*again$"
    with pytest.raises(RecordError, match=words):
        read_pack(tmp_path)


# Packs that ship

SHIPPED = [folder for folder in shipped_experiments() if (folder / PACK).exists()]


@pytest.mark.whole
@pytest.mark.parametrize(
    "shipped", SHIPPED, ids=[str(folder.relative_to(ROOT)) for folder in SHIPPED]
)
def test_a_shipped_pack_is_whole_and_packs_again_to_its_bytes(
    shipped: Path, tmp_path: Path
) -> None:
    planned = set()
    for row in read_experiment(shipped).rows:
        planned |= set(row.runs.values())
    packed = set(packs.read_pack(shipped))
    assert packed <= planned
    # An experiment that is not done yet ships its runs as they come, and no report.
    is_tuning = shipped.name.endswith("_tuning")
    if (shipped / "report.md").exists() or is_tuning:
        assert packed == planned
    for name in ("experiment.json", PACK):
        shutil.copy(shipped / name, tmp_path)
    assert unpack_runs(tmp_path) == len(packed)
    (tmp_path / PACK).unlink()
    unpacked = repr(read_runs(tmp_path))
    expected = repr(read_runs(shipped))
    assert unpacked.replace(str(tmp_path), str(shipped)) == expected
    pack_runs(tmp_path)
    packed_again = (tmp_path / PACK).read_bytes()
    assert packed_again == (shipped / PACK).read_bytes()
