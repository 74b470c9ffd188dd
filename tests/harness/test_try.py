"""A method of one's own, by one command, among the rows of an experiment whose runs are there."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from cser_bench.__main__ import main
from cser_bench.harness.places import SHIPPED_TUNINGS
from cser_bench.harness.plan import trial
from cser_bench.harness.plan.trial import RATES, duration_words, make_trial
from cser_bench.harness.records.experiment import read_experiment
from cser_bench.harness.records.packs import pack_runs
from cser_bench.harness.spec.errors import SpecError
from cser_bench.report import trial as report_trial
from cser_bench.report.frame import read_frames
from cser_bench.report.trial import RIVALS, Rival, verdict
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

EXAMPLE = ROOT / "examples" / "growing_local_sgd.py"
NAME = "growing_local_sgd"


def base_spec() -> Table:
    """The small experiment, with a method at each of two loads, and two trials of every row."""
    spec = changed(small_spec(), "statistics.seeds", [1, 2, 3])
    spec = changed(spec, "statistics.main_ratio", 4.0)
    spec["tuning"] = TUNING
    del spec["rows"][0]["learning_rate"]
    del spec["rows"][1]
    spec["rows"].append(
        {
            "row": "local_sgd",
            "label": "local SGD",
            "algorithm": "local_sgd",
            "ratio": 4,
            "learning_rate": 0.05,
            "settings": {"sync_interval": 4},
        }
    )
    return spec


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The base's spec and its runs, which are done and packed as what ships is."""
    results = tmp_path_factory.mktemp("shipped")
    path = write_spec(results, base_spec())
    run = ["run", str(path), "--results", str(results)]
    assert main([*run, "--tuning"]) == 0
    assert main(run) == 0
    pack_runs(results / "small", remove_folders=True)
    return path, results / "small"


@pytest.fixture
def rivals(
    small: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> tuple[Rival, ...]:
    """The base's rows, which `try` then takes for what ships."""
    path, runs = small
    rows = (Rival(runs, "sgd", "DDP (fp32)"), Rival(runs, "local_sgd", "local SGD"))
    monkeypatch.setattr(trial, "NETWORK", str(path))
    monkeypatch.setattr(trial, "TABLE", runs)
    monkeypatch.setattr(trial, "RATES", (0.05, 0.1, 0.2))
    monkeypatch.setattr(report_trial, "RIVALS", rows)
    return rows


@pytest.mark.timeout(600)
def test_a_method_is_checked_tuned_run_and_ranked_and_others_are_not_run(
    rivals: tuple[Rival, ...], tmp_path: Path, cli: CommandLine
) -> None:
    words = ("try", EXAMPLE, "--results", tmp_path / "results")
    printed = cli.out(*words)
    lines = printed.splitlines()
    assert lines[0].endswith(
        "two convolutions on Fashion-MNIST, 8 workers, two seeds"
    ), "first it says on what"
    assert "this takes about" in lines[1], "then how long"
    assert "3 runs that tune the rate and 2 that count" in lines[1]
    assert "14 of 14 promises are kept" in printed
    assert printed.index("promises are kept") < printed.index("tuning the rate")
    table = printed[printed.index("(95 % CI)") :]
    end = table.index("\n\n")
    longest = max(len(line) for line in table[:end].splitlines())
    assert longest <= 100
    for label in ("DDP (fp32)", "local SGD", NAME, "->"):
        assert label in table[:end]
    folder = tmp_path / "results" / f"try_{NAME}"
    experiment = read_experiment(folder)
    [row] = experiment.rows
    assert row.settings == {"sync_interval": 2}
    assert len(row.runs) == 2
    assert experiment.tuning is not None
    num_trials = experiment.tuning.choices[NAME].num_trials
    assert f"  {num_trials}  " in next(
        line for line in table.splitlines() if "->" in line
    )
    assert {path.name for path in (tmp_path / "results").iterdir()} == {
        f"try_{NAME}",
        f"try_{NAME}_tuning",
    }
    # Called again, it does nothing anew.
    before = sorted(folder.glob("*/result.json"))
    times = [path.stat().st_mtime_ns for path in before]
    assert verdict(folder, rivals) in printed
    assert [
        path.stat().st_mtime_ns for path in sorted(folder.glob("*/result.json"))
    ] == times


@pytest.mark.timeout(600)
def test_a_rate_that_is_given_is_called_that_and_a_broken_promise_trains_nothing(
    rivals: tuple[Rival, ...], tmp_path: Path, cli: CommandLine
) -> None:
    broken = tmp_path / "mine.py"
    text = EXAMPLE.read_text()
    broken.write_text(text.replace("numel * rounds,", "numel,"))
    given = ("--results", tmp_path / "results", "--learning-rate", "0.05")
    settings = ("--settings", "sync_interval = 4, growth = 0.0")
    said = cli.refused("try", broken, *given, code=1)
    assert "breaks a promise" in said
    assert not (tmp_path / "results").exists()
    printed = cli.out("try", EXAMPLE, *given, *settings)
    assert "0 runs that tune the rate and 2 that count" in printed
    [line] = [line for line in printed.splitlines() if line.startswith("->")]
    assert re.search(r"  given +2$", line)
    # It is then local SGD, which ships, and so has its very runs.
    tried = read_frames(tmp_path / "results" / f"try_{NAME}").done(NAME)
    shipped = read_frames(rivals[1].folder).done("local_sgd")
    assert list(tried) == list(shipped)[:2]
    # Its interval is that of two means whose deviation is pooled over all rows, by hand.
    samples = [
        tried.to_numpy(),
        *(read_frames(rival.folder).done(rival.row).to_numpy() for rival in rivals),
    ]
    squares = sum(((sample - sample.mean()) ** 2).sum() for sample in samples)
    degrees = 1 + 2 + 2
    error = np.sqrt(squares / degrees * (1 / 2 + 1 / 3))
    half = 100 * stats.t.ppf(0.975, degrees) * error
    drop = 100 * (samples[1].mean() - samples[0].mean())
    ends = re.search(r" %  +(-?[\d.]+) \((-?[\d.]+) to (-?[\d.]+)\)", line)
    assert ends, "with its interval"
    found = [float(text) for text in ends.groups()]
    assert found == pytest.approx([drop, drop - half, drop + half], abs=0.0051)


def test_words_that_a_trial_cannot_be_made_of(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no TOML"):
        make_trial(str(EXAMPLE), settings="sync_interval")
    with pytest.raises(SpecError, match="no method 'other'"):
        make_trial(str(EXAMPLE), "other")
    text = EXAMPLE.read_text()
    needs = tmp_path / "needs.py"
    needs.write_text(
        text.replace('return {"sync_interval"', 'raise ValueError("no"); {"x"')
    )
    with pytest.raises(
        SpecError, match=r"or its sync_interval, as `try` takes them by --settings"
    ):
        make_trial(str(needs))
    class_text = text[text.index("class ") :]
    second = class_text.replace("GrowingLocalSGD", "Other")
    two = tmp_path / "two.py"
    other = second.replace(NAME, "other")
    two.write_text(text + "\n\n" + other)
    with pytest.raises(SpecError, match="choose one by --method"):
        make_trial(str(two))
    assert make_trial(str(two), "other").name == "other"


def test_settings_change_what_they_name(tmp_path: Path) -> None:
    """All others stay at what sends a twenty-fourth of DDP's traffic."""
    trial = make_trial(str(EXAMPLE), settings="growth = 0.25")
    settings = trial.spec.rows[0].settings.table
    assert settings == {"sync_interval": 12, "growth": 0.25}
    needs = tmp_path / "needs.py"
    text = EXAMPLE.read_text()
    needs.write_text(
        text.replace('return {"sync_interval"', 'raise ValueError("no"); {"x"')
    )
    trial = make_trial(str(needs), settings="sync_interval = 5")
    settings = trial.spec.rows[0].settings.table
    assert settings == {"sync_interval": 5}


def test_what_ships_is_there_and_its_length_said() -> None:
    tried = make_trial(str(EXAMPLE))
    words = duration_words(tried, 2)
    assert "9 runs that tune the rate and 2 that count" in words
    after_about = words.split("about ")[1]
    minutes = int(after_about.split()[0])
    assert minutes <= 6, "on two cores"


@pytest.mark.parametrize("rival", RIVALS, ids=lambda rival: rival.label)
def test_all_rows_that_a_method_is_ranked_among_are_of_its_experiment_and_rates(
    rival: Rival, tmp_path: Path
) -> None:
    experiment = read_frames(rival.folder).experiment
    own = make_trial(str(EXAMPLE), learning_rate=0.1).plan(tmp_path, tuning=False)
    assert experiment.config == own.experiment.config
    trials = read_experiment(SHIPPED_TUNINGS / f"{experiment.name}_tuning").rows
    rates = [trial.learning_rate for trial in trials if trial.tunes == rival.row]
    assert sorted(rates) == list(RATES)
    assert experiment.tuning is not None
    assert experiment.tuning.choices[rival.row].num_trials == len(RATES)
