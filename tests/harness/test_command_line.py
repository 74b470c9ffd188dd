"""The whole way: a small experiment through the command line to a report, its numbers recomputed
from raw records."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from statistics import fmean

import pytest
import tomli_w

from cser_bench.__main__ import main
from cser_bench.commands import GROUPS, commands
from cser_bench.harness.places import EXPERIMENTS
from cser_bench.harness.plan.plan import plan_experiment
from cser_bench.harness.records.shipped import SHIPPED
from cser_bench.harness.spec.spec_file import load_spec
from cser_bench.harness.workers.prepare import write_experiment
from tests.harness.support import (
    ROOT,
    CommandLine,
    Table,
    call,
    changed,
    command,
    environment,
    only,
    small_spec,
    write_spec,
)

ROWS = {"sgd": "SGD", "cser": "CSER", "ef_sgd": "EF-SGD"}


@pytest.mark.whole
def test_run_report_and_status_agree_with_the_raw_records(
    tmp_path: Path, cli: CommandLine
) -> None:
    path = write_spec(tmp_path, small_spec())
    results = tmp_path / "results"
    folder = results / "small"
    done = call(command("run", path, "--jobs", "2"), tmp_path)
    assert done.returncode == 0, done.stderr
    ended = [
        line.split("] ") for line in done.stdout.splitlines() if line.startswith("[")
    ]
    assert sorted(said for _, said in ended) == sorted(
        f"{row} seed {seed}: done" for row in ROWS for seed in (1, 2)
    )
    numbers = [number for number, _ in ended]
    assert numbers == [f"[{number}/6" for number in range(1, 7)]
    cli.out("report", path, "--results", results)
    assert (folder / "report.pdf").read_bytes().startswith(b"%PDF")
    page = (folder / "report.md").read_text()
    with (folder / "csv" / "runs.csv").open(newline="") as file:
        table = {line["run_id"]: line for line in csv.DictReader(file)}
    scores: dict[str, list[float]] = {row: [] for row in ROWS}
    for place in folder.glob("*/result.json"):
        place_of_run = place.with_name("run.json")
        run = json.loads(place_of_run.read_text())
        result = json.loads(place.read_text())
        training = {
            key: result["traffic"][key] for key in ("gradient", "error", "model")
        }
        assert training == result["expected_traffic"]
        reported = table[run["run_id"]]
        assert int(reported["bits"]) == sum(
            entry["bits"] for entry in training.values()
        )
        assert (reported["row"], int(reported["seed"]), reported["status"]) == (
            run["row"],
            run["seed"],
            "done",
        )
        assert float(reported["score"]) == pytest.approx(
            result["test_accuracy"], rel=1e-12
        )
        share = result["test_correct"] / result["test_count"]
        scores[run["row"]].append(100 * share)
    for row, label in ROWS.items():
        assert label in page
        assert len(scores[row]) == 2
        assert f"{fmean(scores[row]):.2f}" in page
    assert counts(cli.out("status", path, "--results", results)) == {
        row: [2, 0] for row in ROWS
    }


@pytest.mark.parametrize(
    "words",
    [
        ("run", "cmudict", "--seeds"),
        ("run", "cmudict", "--rows"),
        ("run",),
        ("report",),
        ("status",),
        (),
    ],
)
def test_an_argument_that_is_much_too_long_is_not_echoed_whole(
    words: tuple[str, ...], cli: CommandLine
) -> None:
    said = cli.refused(*words, "1" * 5000)
    assert "1" * 41 not in said
    assert f"{'1' * 40}... (5,000 characters)" in said


def test_plan_prints_rows_bits_and_counts_touches_no_data_and_writes_nothing(
    tmp_path: Path, cli: CommandLine
) -> None:
    path = write_spec(tmp_path, small_spec())
    output = cli.out("plan", path)
    lines = {
        words[0]: words
        for words in map(str.split, output.splitlines())
        if words and words[0] in ROWS
    }
    # 40 steps of 742 parameters; CSER's 40 eighths and 13 quarters.
    numbers = {"sgd": 40 * 742, "cser": 40 * 93 + 13 * 186, "ef_sgd": 40 * 186}
    for row, count in numbers.items():
        # CSER's workers must average their models once more; of two workers a link carries what one
        # sends.
        models = f"{count / 742 + (row == 'cser'):.1f}"
        assert lines[row][1:2] + lines[row][3:9] == [
            row,
            models,
            models,
            "0.05",
            "2",
            "40",
            f"{4 * count / 1e6:.3f}",
        ]
    ratios = [lines[row][2] for row in ROWS]
    assert ratios == ["1", "4.8", "4"]
    spec = changed(small_spec(), "task.name", "fashion_mnist")
    path = write_spec(tmp_path, spec)
    assert "6 runs" in output
    assert "6 runs" in cli.out("plan", path, "--results", tmp_path / "results")
    assert "gradient compressor: block (ratio 8)" in output
    assert "reset interval: 3" in output
    names = [each.name for each in tmp_path.iterdir()]
    assert names == ["spec.toml"]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_plan_fits_the_terminal_and_keeps_every_word(
    width: int, tmp_path: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_spec(tmp_path, small_spec())
    whole = cli.out("plan", path)
    monkeypatch.setenv("COLUMNS", str(width))
    folded = cli.out("plan", path)
    assert (
        max(map(len, folded.splitlines())) <= width < max(map(len, whole.splitlines()))
    )
    words = set(whole.split())
    rules = {word for word in words if set(word) == {"-"}}
    assert words - rules <= set(folded.split())


def test_make_lists_its_targets_within_80_columns() -> None:
    listed = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=ROOT,
        # One of its lines names the interpreter, whose path may be long.
        env={**os.environ, "PYTHON": "python3"},
        capture_output=True,
        text=True,
        start_new_session=True,  # Without a terminal, whose width it would take.
    )
    lines = listed.stdout.splitlines()
    assert listed.returncode == 0
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("make reproduce ") for line in lines)


def counts(output: str) -> dict[str, list[int]]:
    """Per row: done, missing; no run is in another state."""
    lines = [line.split() for line in output.splitlines()]
    assert lines[0] == ["row", "done", "missing"]
    return {
        line[0]: [int(number) for number in line[1:]]
        for line in lines
        if line and line[0] in ROWS
    }


def test_report_of_nothing_says_how_to_begin_and_where_runs_ship(
    tmp_path: Path, cli: CommandLine
) -> None:
    path = write_spec(tmp_path, only(small_spec(), "sgd"))
    results = tmp_path / "results"
    refused = cli.refused("report", path, "--results", results)
    assert f"there are no runs in {results / 'small'}" in refused
    assert "reference" not in refused
    assert f"`make reproduce EXPERIMENT={path}`" in refused
    shipped = results / "reference" / "small"
    shipped.mkdir(parents=True)
    (shipped / "runs.jsonl").touch()
    said = cli.refused("report", path, "--results", results)
    assert str(shipped) in said


def test_status_knows_that_runs_ship(
    tmp_path: Path, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where none was run: in the checkout that the tests are of someone may have."""
    (tmp_path / "results" / "reference").mkdir(parents=True)
    (tmp_path / "results" / "reference" / "gpt_text").symlink_to(
        SHIPPED / "reference" / "gpt_text"
    )
    monkeypatch.chdir(tmp_path)
    said = cli.out("status", "gpt_text")
    assert said.startswith(
        "30 of 30 runs ship with the project, in results/reference/gpt_text"
    )
    assert "missing" not in said


def test_status_of_nothing_and_of_a_damaged_plan(
    tmp_path: Path, cli: CommandLine
) -> None:
    path = write_spec(tmp_path, small_spec())
    results = tmp_path / "results"
    assert counts(cli.out("status", path, "--results", results)) == {
        row: [0, 2] for row in ROWS
    }
    assert "results/small" in cli.refused("report", path, "--results", results)
    assert not results.exists()
    (results / "small").mkdir(parents=True)
    (results / "small" / "experiment.json").write_text(
        '{"version": 1, "name": "small"}'
    )
    assert "experiment.json has a bad field" in cli.refused(
        "status", path, "--results", results, code=1
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "missing command"),
        (["sing"], "no such command 'sing'"),
        (["run"], "missing argument 'EXPERIMENT'"),
        *(
            (["run", "x", "--jobs", bad], f"at least 1, not '{bad}'")
            for bad in ("0", "x")
        ),
        (["run", "x", "--workers", "bees"], "'bees' is not one of 'stacked'"),
        (["plan", "x", "--lr", "1"], "no such option"),
        (["run", "x", "--job", "2"], "no such option"),
        (["run", "x", "--rows"], "requires an argument"),
        (["run", "x", "--rows", "--jobs", "2"], "'--rows' requires an argument"),
        (["plan", "x", "y"], "unexpected extra argument"),
        *(
            (["run", "x", "--timeout-seconds", bad], "number above 0")
            for bad in ("0", "-5", "nan", "inf", "x")
        ),
        *(
            (["run", "x", "--checkpoint-minutes", bad], "at least 0")
            for bad in ("-1", "inf")
        ),
        *((["netlab", "--rates", bad], "number above 0") for bad in ("0", "10,,20")),
    ],
)
def test_wrong_usage_exits_with_2(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert said in error
    assert re.search(r"; see `python -m harness( run| netlab| plan)? --help`\n$", error)


@pytest.mark.parametrize(
    "target",
    [
        "bench",
        "netlab",
        "speedups",
        *(f"speedups SESSION={kind}" for kind in ("scored", "wide", "text")),
    ],
)
def test_what_is_measured_here_goes_to_a_place_that_git_ignores(
    target: str, tmp_path: Path
) -> None:
    """Unless a place is given; what ships is made anew by --output or RESULTS=."""
    for stamp in (".installed", ".installed-dev"):
        (tmp_path / stamp).touch()

    def place(*given: str) -> str:
        words = ["make", "-n", *target.split(), f"VENV={tmp_path}", *given]
        recipe = subprocess.run(
            words, cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout
        (path,) = re.findall(r'--(?:output|junit-xml) "(.+?)"', recipe)
        return str(path)

    def is_ignored(path: str) -> bool:
        return (
            subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT).returncode
            == 0
        )

    assert is_ignored(place())
    assert place("RESULTS=mine").startswith("mine/")
    assert not is_ignored("results/speedups")
    assert not is_ignored("results/bench/bench.xml")


@pytest.mark.parametrize(
    "target", ["reproduce", "plan", "status", "resubmit", "report"]
)
def test_targets_take_files_of_methods(target: str, tmp_path: Path) -> None:
    (tmp_path / ".installed").touch()
    given = ["EXPERIMENT=x", "METHODS=a.py b.py", f"VENV={tmp_path}"]
    recipe = subprocess.run(
        ["make", "-n", target, *given],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    calls = [line for line in recipe.splitlines() if "-m harness" in line]
    assert calls
    assert all("--methods a.py b.py" in line for line in calls)


@pytest.mark.parametrize("command", ["speedups", "netlab", "time"])
def test_help_says_where_measurements_go_that_git_ignores(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--help"]) == 0
    output = capsys.readouterr().out
    said = " ".join(output.split())
    (path,) = re.findall(r"\(default: (results/\S+), which git ignores\)", said)
    done = subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT)
    assert done.returncode == 0, path


def test_plan_without_a_name_lists_the_experiments(cli: CommandLine) -> None:
    lines = cli.out("plan").splitlines()
    files = list(EXPERIMENTS.rglob("*.toml"))
    assert len(lines) == len(files) > 0
    for path in files:
        spec = load_spec(path)
        (line,) = [line for line in lines if line.split()[0] == spec.name]
        assert line.endswith(f" {spec.title}")


def test_help_lists_all_commands_in_three_groups(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    heads = [lines.index(f"{head}:") for head in GROUPS]
    assert heads == sorted(heads)
    names = {line.split()[0] for line in lines[heads[0] :] if line[2:3].strip()}
    assert names >= set(commands.commands)
    assert main(["sing", "--help"]) == 2


def test_an_option_with_several_words_ends_at_the_next_option(
    tmp_path: Path, cli: CommandLine
) -> None:
    path = str(write_spec(tmp_path, small_spec()))
    here = ["--results", str(tmp_path / "results")]
    chosen = ["--rows", "sgd", "ef_sgd", "--seeds", "1", "--jobs", "1"]
    said = cli.out("run", path, *here, *chosen)
    assert "all 2 runs of small are done" in said
    again = cli.out(
        "run", *here, "--rows", "sgd", "--rows=ef_sgd", "--seeds", "1", "--", path
    )
    assert "all 2 runs of small are done" in again


ADVICE = [
    "advise",
    "--parameters",
    "25.6M",
    "--steps",
    "4e5",
    "--compute-ms",
    "27",
    "--bandwidth",
    "10Gb/s",
]
TOO_LONG = "x" * 300
MISTAKES = [
    *(
        (name, bad)
        for name in ("plan", "preflight", "run", "status", "submit", "report")
        for bad in ("nobody", "empty")
    ),
    *(
        (name, bad)
        for name in ("plan", "status", "report")
        for bad in ("", "file", "folder.toml", TOO_LONG, "a\0b")
    ),
    *(
        (name, "small", "--results", "file")
        for name in ("plan", "preflight", "run", "status", "submit", "report")
    ),
    *((name, "small", "--results", TOO_LONG) for name in ("plan", "run", "report")),
    *(
        (name, bad)
        for name in ("pack", "unpack")
        for bad in ("nobody", "file", "empty", "", TOO_LONG)
    ),
    ("unpack", "planned"),
    ("pack", "planned"),
    ("run", "small", "--data", "nobody"),
    ("preflight", "small", "--data", "file"),
    ("run", "small", "--rows", "nobody"),
    ("run", "small", "--seeds", "77"),
    ("submit", "small", "--cluster", TOO_LONG),
    ("submit", "small", "--cluster", "folder.toml"),
    ("submit", "small", "--cluster", "empty.toml"),
    ("report", "planned", "--output", "file"),
    ("report", "planned", "--output", "file/inside"),
    ("answers", "--results", "file"),
    ("answers", "--output", "file"),
    ("answers", "--readme", "nobody"),
    ("answers", "--results", "nobody"),
    *((*ADVICE, "--workers", bad) for bad in ("2x", "x4", "0x4", "2x4x4")),
    *((*ADVICE, "--workers", "8", "--network", bad) for bad in ("nobody", "file", "")),
    (*ADVICE, "--workers", "8", "--steps", "0.2"),
    (*ADVICE, "--workers", "8", "--parameters", "0.5"),
    # Options that it had once.
    *(
        (*ADVICE, "--workers", "8", option, "1")
        for option in ("--margin", "--gap", "--map")
    ),
    ("speedups", "--methods", "ddp"),
    ("speedups", "--output", "file"),
    ("netlab", "--workers", "3", "--machines", "2"),
    ("netlab", "--output", "file"),
    ("time", "--output", "file"),
    ("time",),
]


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in with an experiment, one that is planned, and what is none."""
    monkeypatch.chdir(tmp_path)
    write_spec(tmp_path, small_spec()).rename(tmp_path / "small")
    write_experiment(plan_experiment("small", tmp_path), tmp_path / "results")
    (tmp_path / "results" / "small").rename(tmp_path / "planned")
    for folder in ("empty", "folder.toml"):
        (tmp_path / folder).mkdir()
    (tmp_path / "file").write_text("nothing of ours")
    (tmp_path / "empty.toml").touch()
    return tmp_path


@pytest.mark.parametrize(
    "words", MISTAKES, ids=lambda words: " ".join(words)[:80].replace("\0", "0")
)
def test_mistakes_in_what_a_command_is_given_exit_with_2_and_a_sentence(
    words: tuple[str, ...], places: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def seen() -> list[Path]:
        paths = places.rglob("*")
        return sorted(path for path in paths if path.suffix != ".lock")

    before = seen()
    ended = main(list(words))
    said = capsys.readouterr().err.strip()
    assert ended == 2
    assert seen() == before
    assert said.startswith("error: ")
    assert "\n" not in said


def test_two_specs_of_one_name_in_one_folder_are_refused(
    tmp_path: Path, cli: CommandLine
) -> None:
    first = tmp_path / "first.toml"
    second = tmp_path / "second.toml"
    results = tmp_path / "results"

    def begin(path: Path, spec: Table) -> None:
        path.write_text(tomli_w.dumps(spec))
        write_experiment(plan_experiment(str(path), results), results)

    spec = only(small_spec(), "sgd")
    begin(first, spec)
    written = (results / "small" / "experiment.json").read_bytes()
    table = only(small_spec(), "ef_sgd")
    second.write_text(tomli_w.dumps(table))
    said = cli.refused("run", second, "--results", results)
    assert str(first) in said
    assert "another name" in said
    assert (results / "small" / "experiment.json").read_bytes() == written
    # The same experiment by another path is the same, and a file may change.
    begin(second, spec)
    two_seeds = changed(spec, "statistics.seeds", [1, 2])
    begin(second, two_seeds)
    assert (results / "small" / "experiment.json").read_bytes() != written


def test_output_that_nobody_reads_to_its_end_ends_a_command_quietly(
    tmp_path: Path,
) -> None:
    """As in `plan | head`."""
    code = """
import sys
from cser_bench.harness.cli import exits
sys.exit(exits.end_of(lambda: print("row " * 50_000) or 0))
"""
    pipe = subprocess.PIPE
    unread = subprocess.Popen(
        [sys.executable, "-c", code], env=environment(), stdout=pipe, stderr=pipe
    )
    assert unread.stdout is not None
    assert unread.stderr is not None
    unread.stdout.close()
    assert unread.wait(100) == 141
    assert unread.stderr.read() == b""


def test_ctrl_c_while_a_command_still_loads_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "pydantic.py").write_text("raise KeyboardInterrupt\n")
    own = environment()
    own["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{own['PYTHONPATH']}"
    words = [
        sys.executable,
        "-m",
        "harness",
        "status",
        "fashion_mnist",
        "--results",
        str(tmp_path),
    ]
    ended = subprocess.run(words, env=own, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 130
    assert ended.stdout == ""
    assert ended.stderr.startswith("interrupted: ")
    assert ended.stderr.count("\n") == 1


def test_a_shell_can_complete_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--print-completion", "bash"]) == 0
    script = capsys.readouterr().out
    checked = subprocess.run(["bash", "-n"], input=script, text=True)
    assert checked.returncode == 0
    assert " cser-harness\n" in script


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["run", "gpt_text_m"], ["gpt_text_methods"]),
        (["plan", "studies/mom"], ["studies/momentum"]),
        (["stat"], ["status"]),
        (["status", "x", "--res"], ["--results"]),
    ],
)
def test_a_shell_completes_commands_experiments_and_options(
    words: list[str],
    wanted: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["--print-completion", "bash"])
    script = capsys.readouterr().out
    # What pip installs.
    program = tmp_path / "cser-harness"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m cser_bench "$@"\n')
    program.chmod(0o755)
    own = environment()
    own["PATH"] = f"{tmp_path}{os.pathsep}{own['PATH']}"
    typed = " ".join(["cser-harness", *words])
    script += f"""
COMP_WORDS=({typed})
COMP_CWORD={len(words)}
$(complete -p cser-harness | sed 's/.*-F \\([^ ]*\\) .*/\\1/') cser-harness
echo "${{COMPREPLY[@]}}"
"""
    completed = subprocess.run(
        ["bash"], input=script, env=own, capture_output=True, text=True
    )
    assert completed.stdout.split() == wanted, completed.stderr
