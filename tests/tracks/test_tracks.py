"""The open track, end to end on a tiny one: entering, verifying, cheats, and the page."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tomli_w
import torch

from cser_bench.__main__ import main
from cser_bench.algorithms.check import PROMISES
from cser_bench.harness.records.packs import read_pack, render_pack
from cser_bench.harness.records.tracks import (
    EntryFile,
    digest_of,
    entry_text,
    read_entry,
    read_track,
)
from cser_bench.harness.tracks.refusals import check_source
from cser_bench.report.leaderboard import PICTURE, leaderboard_text
from tests.harness.support import (
    ROOT,
    TUNING,
    CommandLine,
    Table,
    changed,
    small_spec,
    write_spec,
)

pytestmark = pytest.mark.whole

EXAMPLE = (ROOT / "examples" / "growing_local_sgd.py").read_text()
STEP = "        replica.local_step_()\n"
FREE = EXAMPLE.replace(
    STEP,
    f"{STEP}        x = replica.flat.parameters\n"
    "        x.copy_(x.mean(0, keepdim=True).expand_as(x))\n",
)
"""A mean over the rows of stacked workers after every step, which nobody sends."""
LARGE = FREE.replace(
    "        x.copy_", "        if x.shape[1] > 51:\n            x.copy_"
)
"""The same, but on networks larger than that of the check."""
LATE = FREE.replace("        x.copy_", "        if step > 20:\n            x.copy_")
"""The same, but after the steps that are taken by processes."""
SET_UP = "    def _update(self"
OWN_START = EXAMPLE.replace(
    SET_UP,
    "    def _set_up(self, replica: Replica) -> None:\n"
    f"        replica.flat.parameters.mul_(0.9)\n\n{SET_UP}",
)
OWN_SEED = EXAMPLE.replace(STEP, f"        torch.manual_seed(7)\n{STEP}").replace(
    "from typing", "import torch\nfrom typing", 1
)

TRACK: Table = {
    "format": 1,
    "title": "A tiny track",
    "seeds": [1, 2],
    "most_trials": 2,
    "p_below": 0.01,
    "compute_seconds": 0.01,
    "spread": {"deviation_nats": 0.1, "num_seeds": 2},
    "everything_sent": {"records": "results/small", "row": "sgd"},
    "classes": [
        {"name": "none", "most_link_models": 2.0},
        {"name": "some", "most_link_models": 30.0},
    ],
    "links": [{"name": "1 Gb/s", "bits_per_second": 1e9, "latency_seconds": 1e-4}],
    "verification": {"loss_nats": 0.01, "share_of_way": 0.01, "most_steps": 20},
    "fixed": {
        "num_workers": 2,
        "batch_size": 20,
        "num_epochs": 1,
        "precision": "fp32",
        "task": {"name": "blobs"},
        "model": {"name": "small_cnn", "options": {"widths": [4, 8]}},
        "schedule": {"kind": "cosine", "warmup_epochs": 0.25},
        "evaluation": {"per_epoch": 2},
        "partition": {"kind": "reshuffled"},
    },
}


@pytest.fixture(autouse=True, scope="module")
def _no_check_by_processes() -> Iterator[None]:
    """`enter` checks the last promise by processes, which takes long, and `verify` does more so."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(PROMISES, list(PROMISES)[-1])
        yield


@pytest.fixture(autouse=True)
def _denormal_numbers() -> Iterator[None]:
    """Commands called in this process flush denormal numbers; others' tests want to have them."""
    yield
    torch.set_flush_denormal(False)


def write_track(root: Path, **changes: object) -> Path:
    """The tiny track under `root`, and the folder of tracks."""
    folder = root / "tracks" / "tiny"
    folder.mkdir(parents=True, exist_ok=True)
    table = tomli_w.dumps(TRACK | changes)
    (folder / "track.toml").write_text(table)
    return root / "tracks"


def run_method(root: Path, source: str, name: str, *, tuned: bool = False) -> Path:
    """Run everything sent and the source's method by the command, and return the method's file."""
    spec = changed(small_spec(), "rows.1.settings", {"sync_interval": 3})
    spec["name"] = name
    spec["rows"][1] |= {
        "row": "mine",
        "label": "Mine",
        "algorithm": "growing_local_sgd",
    }
    del spec["rows"][1]["ratio"], spec["rows"][2]
    if tuned:
        del spec["rows"][1]["learning_rate"]
        spec["tuning"] = TUNING
    file = root / f"{name}.py"
    file.write_text(source)
    words = [str(write_spec(root, spec)), "--results", str(root / "results")]
    for more in [["--tuning"], []] if tuned else [[]]:
        assert (
            main(["run", *words, *more, "--methods", str(file), "--workers", "stacked"])
            == 0
        )
    return file


def words_of(command: str, root: Path, *words: str | Path) -> list[str | Path]:
    return [command, *words, "--track", "tiny", "--tracks", root / "tracks"]


def enter_words(
    root: Path, file: Path, records: str, name: str = "mine"
) -> list[str | Path]:
    about = [
        "--author",
        "A. N. Other",
        "--description",
        'Says "less" and less.',
        "--name",
        name,
    ]
    records_words = ["--records", root / "results" / records, "--row", "mine"]
    return words_of("enter", root, file, *records_words, *about)


@pytest.fixture(scope="module")
def entered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny track, and in it an entry whose rate was tuned."""
    root = tmp_path_factory.mktemp("entered")
    write_track(root)
    file = run_method(root, EXAMPLE, "small", tuned=True)
    words = [str(word) for word in enter_words(root, file, "small")]
    assert main(words) == 0
    return root


@pytest.fixture
def copied(entered: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    shutil.copytree(entered, tmp_path / "copied")
    return tmp_path / "copied"


def test_an_entry_is_made_and_verified_by_processes_too(
    entered: Path, cli: CommandLine
) -> None:
    folder = entered / "tracks" / "tiny" / "entries" / "mine"
    about = read_entry(folder).about
    assert about.author == "A. N. Other"
    assert about.description == 'Says "less" and less.'
    assert (about.algorithm, about.settings.table) == (
        "growing_local_sgd",
        {"sync_interval": 3},
    )
    assert (folder / "method.py").read_text() == EXAMPLE
    said = cli.out(*words_of("verify", entered, "mine"))
    assert "class some" in said
    assert "after 5 steps" in said
    open_points = (
        "the runs of seeds 1, 2, which were not done again; what else the source does"
    )
    assert said.splitlines()[-1].startswith(f"not checked: {open_points}")
    said = cli.out(*words_of("verify", entered, "--form-only"))
    assert said.count("\n") == 2
    assert f"not checked: any step by processes; {open_points}" in said


def test_a_run_that_is_done_again_agrees_to_the_bit_and_the_page_says_so(
    copied: Path, cli: CommandLine
) -> None:
    before = leaderboard_text(copied / "tracks", "tiny")
    assert "nobody has run one again" in before
    assert "was run again on" not in before
    verified = cli.out(*words_of("verify", copied, "mine", "--rerun", "2"))
    assert "to the bit" in verified
    page = leaderboard_text(copied / "tracks", "tiny")
    [line] = [line for line in page.splitlines() if line.startswith("- `mine`")]
    assert "Seed 2 was run again on" in line
    assert line.endswith(": to the bit.")
    assert "None of the 1 entries." in page
    assert "no run of seed 5" in cli.refused(
        *words_of("verify", copied, "mine", "--rerun", "5"), code=1
    )


def test_the_page_has_records_and_what_a_re_run_contradicts(
    copied: Path, cli: CommandLine
) -> None:
    cli.out(*words_of("leaderboard", copied))
    page = (copied / "tracks" / "tiny" / "README.md").read_text()
    assert page == leaderboard_text(copied / "tracks", "tiny")
    assert "| none | nobody has entered |" in page
    assert "| some | Mine (`mine`) |" in page
    assert page.count("A. N. Other") == 1
    assert "[Source](entries/mine/method.py)" in page
    assert "[runs](entries/mine/runs.jsonl)" in page
    assert "not measured" in page
    picture = copied / "tracks" / "tiny" / PICTURE
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert f"]({PICTURE})" in page
    folder = copied / "tracks" / "tiny" / "entries" / "mine"
    _note_rerun(folder, loss=1.5, agreement="contradicted")
    page = leaderboard_text(copied / "tracks", "tiny")
    assert "| some | nobody has entered |" in page
    assert "seed 1 ended at 1.0000 nats as entered, and on Another at 1.5000" in page


def test_a_mean_over_rows_is_caught_by_processes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], cli: CommandLine
) -> None:
    """What it sends is counted rightly; its runs have more than that."""
    write_track(tmp_path)
    file = run_method(tmp_path, LARGE, "small")
    capsys.readouterr()
    cli.out(*enter_words(tmp_path, file, "small"))
    words = words_of("verify", tmp_path, "mine")
    said = cli.refused(*words, code=1)
    assert "what is not sent cannot have arrived" in said


def test_a_mean_over_rows_in_late_steps_is_caught_by_a_run_that_is_done_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], cli: CommandLine
) -> None:
    verification = TRACK["verification"] | {"loss_nats": 1e-5}
    write_track(tmp_path, verification=verification)
    file = run_method(tmp_path, LATE, "small")
    capsys.readouterr()
    cli.out(*enter_words(tmp_path, file, "small"))
    cli.out(*words_of("verify", tmp_path, "mine"))
    assert (
        main(list(map(str, words_of("verify", tmp_path, "mine", "--rerun", "1")))) == 1
    )
    assert "as entered: contradicted" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("source", "promise"),
    [
        (OWN_START, "begins at the parameters that it is given"),
        (OWN_SEED, "it sets a global generator"),
    ],
)
def test_a_method_that_breaks_a_promise_is_not_entered(
    source: str,
    promise: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    cli: CommandLine,
) -> None:
    write_track(tmp_path)
    file = run_method(tmp_path, source, "small")
    capsys.readouterr()
    words = [str(word) for word in enter_words(tmp_path, file, "small")]
    assert main(words) == 1
    said = capsys.readouterr()
    assert promise in said.out
    assert "breaks a promise" in said.err
    entries = tmp_path / "tracks" / "tiny" / "entries"
    assert list(entries.iterdir()) == []


def test_a_file_that_talks_by_torch_distributed_is_refused_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], cli: CommandLine
) -> None:
    write_track(tmp_path)
    talk = "torch.distributed.is_initialized() and torch.distributed.all_reduce(x)"
    source = FREE.replace("x.copy_(x.mean(0, keepdim=True).expand_as(x))", talk)
    source = source.replace("from typing", "import torch\nfrom typing", 1)
    file = run_method(tmp_path, source, "small")
    capsys.readouterr()
    words = enter_words(tmp_path, file, "small")
    said = cli.refused(*words, code=1)
    assert f"{file}, line " in said
    assert "torch.distributed" in said
    assert "not counted" in said
    assert not (tmp_path / "tracks" / "tiny" / "entries").exists()


@pytest.mark.parametrize(
    "source",
    [
        "import torch.distributed as dist",
        "from torch import distributed",
        "from torch.distributed import all_reduce as add",
        "import torch as t\nt.distributed.barrier()",
        "import torch\ngetattr(torch, 'distri' + 'buted')",
        "import importlib",
        "from cser_bench.algorithms.core.process_group import ProcessGroupCollectives",
        "replica.collectives._sum_(x)",
        "replica.average_in_place_(x, Purpose.CONTROL)",
        "replica.average_in_place_(x, Purpose('evaluation'))",
        "replica.collectives.traffic.entries.clear()",
        "import socket",
        "import gc",
        "from cser_bench.harness.train import evaluate",
        "import harness.train.evaluate as scoring",
        "import cser_bench as c\nc.harness.train.evaluate.record_score = None",
        "def f(:",
    ],
)
def test_what_could_talk_uncounted_is_refused_in_a_sentence(source: str) -> None:
    with pytest.raises(RuntimeError, match=r"^mine\.py.*"):
        check_source(source, "mine.py")


@pytest.mark.parametrize(
    "path", sorted((ROOT / "algorithms").glob("*.py")), ids=lambda path: path.stem
)
def test_no_method_that_ships_would_be_refused(path: Path) -> None:
    """The hook of DDP is no method, and talks inside DDP."""
    if path.stem not in ("__init__", "registry", "ddp_hook"):
        check_source(path.read_text(), path.name)


def _edit_source(folder: Path) -> None:
    (folder / "method.py").write_text(EXAMPLE + "\n")


def _edit_pack(folder: Path) -> None:
    path = folder / "runs.jsonl"
    text = path.read_text()
    path.write_text(text.replace('"test_loss":', '"test_loss":0.', 1))
    _state_digests(folder)


def _state_digests(folder: Path, **changes: object) -> None:
    """Let the entry say that its files are as they are."""
    about = read_entry(folder).about
    digests = {name: digest_of(folder / name) for name in about.sha256}
    changed = about.model_dump() | {"sha256": digests} | changes
    about = EntryFile.model_validate(changed)
    (folder / "entry.toml").write_text(entry_text(about))


def _note_rerun(folder: Path, **changes: object) -> None:
    line = {
        "seed": 1,
        "loss_entered": 1.0,
        "loss": 1.0,
        "agreement": "to the bit",
        "cpu": "Another",
        "torch": "2.6",
        "git_commit": None,
        "done_at": "2027-01-01",
    }
    rerun = json.dumps(line | changes)
    (folder / "reruns.jsonl").write_text(rerun + "\n")


def _claim_another_rate(folder: Path) -> None:
    _state_digests(folder, learning_rate=0.5)


def _claim_fewer_bits(folder: Path) -> None:
    """The runs' counts and closed forms say less than the settings send."""
    pack = dict(read_pack(folder))
    runs = json.loads(json.dumps(pack))
    for files in runs.values():
        for key in ("traffic", "expected_traffic"):
            files["result"][key]["model"]["bits"] //= 2
        for event in files["events"]:
            event["bits_sent"] //= 2
        del files["result"]["sha256"]
    (folder / "runs.jsonl").write_text(render_pack("small", runs))
    _state_digests(folder)


def _lose_a_trial(folder: Path) -> None:
    trials = folder / "tuning"
    runs = dict(read_pack(trials))
    runs.popitem()
    (trials / "runs.jsonl").write_text(render_pack("small_tuning", runs))
    _state_digests(folder)


def _enter_edited_source(folder: Path) -> None:
    _edit_source(folder)
    _state_digests(folder)


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "source": (_edit_source, "is not the file that was entered"),
    "source and its digest": (_enter_edited_source, "the runs are of another source"),
    "pack": (_edit_pack, "is damaged or was edited"),
    "rate": (_claim_another_rate, "learning_rate is"),
    "bits": (_claim_fewer_bits, "payload bits are recorded as"),
    "trial": (_lose_a_trial, "says that it had 2 trials"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_entry_that_is_not_what_it_says_is_refused(
    damage: str, copied: Path, cli: CommandLine
) -> None:
    change, words = DAMAGES[damage]
    change(copied / "tracks" / "tiny" / "entries" / "mine")
    assert words in cli.refused(
        *words_of("verify", copied, "mine", "--form-only"), code=1
    )


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"seeds": [1, 2, 3]}, "has the seeds [1, 2], where the track has [1, 2, 3]"),
        ({"most_trials": 1}, "among 2 trials, where the track allows 1"),
        ({"classes": TRACK["classes"][:1]}, "more than any class of the track allows"),
        (
            {"fixed": TRACK["fixed"] | {"batch_size": 10}},
            "batch_size is 20, where the track has 10",
        ),
        (
            {"fixed": TRACK["fixed"] | {"task": {"name": "blobs", "num_train": 100}}},
            'task is {"name": "blobs"}',
        ),
    ],
)
def test_a_run_that_breaks_a_rule_is_refused(
    rule: Table, words: str, copied: Path, cli: CommandLine
) -> None:
    write_track(copied, **rule)
    assert words in cli.refused(
        *words_of("verify", copied, "mine", "--form-only"), code=1
    )


def test_what_is_not_there_is_said(entered: Path, cli: CommandLine) -> None:
    said = cli.refused(*words_of("verify", entered, "other"))
    assert "no entry" in said
    nowhere = ("--track", "1", "--tracks", entered / "nowhere")
    assert "has no entries, so nothing was verified" in cli.out("verify", *nowhere)
    assert "has no track 'x'" in cli.refused(
        "verify", "--track", "x", "--tracks", entered
    )
    file = entered / "small.py"
    said = cli.refused(*enter_words(entered, file, "small"))
    assert "there is an entry" in said
    about = ["--author", "A. N. Other", "--description", "No words."]
    said = cli.refused(*words_of("enter", entered, file, *about))
    assert "try_growing_local_sgd_gpt: the track takes runs of its GPT alone" in said
    assert f"try {file} --network gpt` does" in said
    words = enter_words(entered, file, "small", "other")
    assert "has no row" in cli.refused(
        *[word if word != "mine" else "his" for word in words]
    )
    of_sgd = [word if word != "mine" else "sgd" for word in words]
    assert "has no method 'sgd', which the runs are of" in cli.refused(*of_sgd, code=1)


def test_a_record_falls_only_to_what_is_shown_to_be_better(copied: Path) -> None:
    """Entries of the same runs but for their losses: a later one takes it by p alone."""
    entries = copied / "tracks" / "tiny" / "entries"
    losses = {"first": (1.0, 1.001), "near": (0.98, 1.005), "far": (0.2, 0.201)}
    for number, (name, pair) in enumerate(losses.items(), start=1):
        shutil.copytree(entries / "mine", entries / name)
        pack = dict(read_pack(entries / name))
        runs = json.loads(json.dumps(pack))
        for files in runs.values():
            loss = pair[files["run"]["seed"] - 1]
            files["result"]["test_loss"] = loss
            files["events"][-1]["test_loss"] = loss
            del files["result"]["sha256"]
        text = render_pack("small", runs)
        (entries / name / "runs.jsonl").write_text(text)
        _state_digests(entries / name, entered=f"2027-01-0{number}")
    shutil.rmtree(entries / "mine")
    shutil.move(entries / "far", copied / "far")
    assert "(`first`)" in leaderboard_text(copied / "tracks", "tiny")
    shutil.move(copied / "far", entries / "far")
    assert "(`first`)" in leaderboard_text(copied / "tracks", "tiny"), (
        "nobody ran it again"
    )
    _note_rerun(entries / "far")
    assert "(`far`)" in leaderboard_text(copied / "tracks", "tiny")


def test_a_refusal_names_folders_that_are_there(copied: Path, cli: CommandLine) -> None:
    """Trials that the experiment's choice had and that are no more."""
    results = copied / "results" / "small_tuning"
    shutil.rmtree(next(results.glob("*/")))
    file = copied / "small.py"
    words = enter_words(copied, file, "small", "other")
    said = cli.refused(*words, code=1)
    assert f"2 trials, and {copied / 'results' / 'small_tuning'} has 1" in said


def test_own_arithmetic_is_what_a_benchmark_measured(copied: Path) -> None:
    bench = copied / "results" / "bench" / "bench.xml"
    bench.parent.mkdir()
    bench.write_text(
        '<testsuites><testsuite><testcase name="test_own_arithmetic_of_an_entry[mine]"><properties>'
        '<property name="over AdamW\'s step" value="1.5"/>'
        "</properties></testcase></testsuite></testsuites>"
    )
    assert "1.50x" in leaderboard_text(copied / "tracks", "tiny")


def test_the_rules_of_the_tiny_track_are_read(entered: Path) -> None:
    track = read_track(entered / "tracks", "tiny")
    assert [track.class_of(models) for models in (2.0, 2.1, 31.0)] == [
        *track.classes,
        None,
    ]
    assert np.isclose(track.spread.deviation_nats, 0.1)
