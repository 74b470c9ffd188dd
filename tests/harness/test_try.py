"""A method of one's own, by one command, among the rows of an experiment whose runs are there."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from cser_bench.__main__ import main
from cser_bench.harness.places import SHIPPED_TUNINGS
from cser_bench.harness.plan import trial
from cser_bench.harness.plan.trial import NETWORKS, Shipped, duration_words, make_trial
from cser_bench.harness.records.experiment import read_experiment
from cser_bench.harness.records.packs import pack_runs
from cser_bench.harness.spec.errors import SpecError
from cser_bench.report.frame import read_frames
from cser_bench.report.statistics import unpaired
from cser_bench.report.trial import _trials, verdict
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
def small(tmp_path_factory: pytest.TempPathFactory) -> Shipped:
    """The base, whose runs are done and packed as what ships is."""
    results = tmp_path_factory.mktemp("shipped")
    path = write_spec(results, base_spec())
    run = ["run", str(path), "--results", str(results)]
    assert main([*run, "--tuning"]) == 0
    assert main(run) == 0
    pack_runs(results / "small", remove_folders=True)
    return Shipped(str(path), results / "small", afterwards="Then a larger one.")


@pytest.fixture
def shipped(small: Shipped, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the base's runs, which `try` then takes for what ships."""
    monkeypatch.setitem(trial.NETWORKS, "perceptron", small)
    return small.runs


@pytest.mark.whole
@pytest.mark.timeout(600)
def test_a_method_is_checked_tuned_run_and_ranked_and_others_are_not_run(
    shipped: Path, tmp_path: Path, cli: CommandLine
) -> None:
    words = ("try", EXAMPLE, "--results", tmp_path / "results")
    printed = cli.out(*words)
    lines = printed.splitlines()
    assert "this takes about" in lines[1], "first it says how long"
    assert "2 runs that tune the rate and 3 that count" in lines[1]
    assert "14 of 14 promises are kept" in printed
    assert printed.index("promises are kept") < printed.index("tuning the rate")
    table = printed[printed.index("(95 % CI)") :]
    assert max(map(len, table[: table.index("\n\n")].splitlines())) <= 100
    assert "DDP (fp32), SGD" in table
    assert "->" in table
    folder = tmp_path / "results" / f"try_{NAME}_perceptron"
    experiment = read_experiment(folder)
    [row] = experiment.rows
    assert row.settings == {"sync_interval": 2}
    assert len(row.runs) == 3
    assert experiment.tuning is not None
    num_trials = experiment.tuning.choices[NAME].num_trials
    assert f"  {num_trials}  " in next(
        line for line in table.splitlines() if "->" in line
    )
    assert {path.name for path in (tmp_path / "results").iterdir()} == {
        f"try_{NAME}_perceptron",
        f"try_{NAME}_perceptron_tuning",
    }
    assert "Three seeds would show a difference of" in table
    next_line = f"next: python -m harness try {EXAMPLE} --network residual --results "
    assert f"Then a larger one.\n{next_line}" in table
    assert table.count("\n", table.index("next:")) == 1
    # Called again, it does nothing anew.
    before = sorted(folder.glob("*/result.json"))
    times = [path.stat().st_mtime_ns for path in before]
    assert verdict(folder, shipped) in printed
    assert [
        path.stat().st_mtime_ns for path in sorted(folder.glob("*/result.json"))
    ] == times


@pytest.mark.whole
@pytest.mark.timeout(600)
def test_a_rate_that_is_given_is_called_that_and_a_broken_promise_trains_nothing(
    shipped: Path, tmp_path: Path, cli: CommandLine
) -> None:
    broken = tmp_path / "mine.py"
    broken.write_text(EXAMPLE.read_text().replace("numel * rounds,", "numel,"))
    given = ("--results", tmp_path / "results", "--learning-rate", "0.05")
    settings = ("--settings", "sync_interval = 4, growth = 0.0")
    said = cli.refused("try", broken, *given, code=1)
    assert "breaks a promise" in said
    assert not (tmp_path / "results").exists()
    printed = cli.out("try", EXAMPLE, *given, *settings)
    assert "given, not tuned" in printed
    assert "another one may do better" in printed
    # It is then local SGD, which ships, and so ties with it to the bit, at its load.
    assert re.search(
        r"Against [\w -]+, the best of 2 rows at its traffic \(1/[\d.]+\): ", printed
    )
    compared = re.findall(r"-> ?\d+.* (-?[\d.]+) \((-?[\d.]+) to", printed)
    assert compared, "with its interval"


def test_words_that_a_trial_cannot_be_made_of(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no TOML"):
        make_trial(str(EXAMPLE), "residual", settings="sync_interval")
    with pytest.raises(SpecError, match="no method 'other'"):
        make_trial(str(EXAMPLE), "residual", "other")
    text = EXAMPLE.read_text()
    needs = tmp_path / "needs.py"
    needs.write_text(
        text.replace('return {"sync_interval"', 'raise ValueError("no"); {"x"')
    )
    with pytest.raises(
        SpecError, match=r"or its sync_interval, as `try` takes them by --settings"
    ):
        make_trial(str(needs), "residual")
    second = text[text.index("class ") :].replace("GrowingLocalSGD", "Other")
    two = tmp_path / "two.py"
    two.write_text(text + "\n\n" + second.replace(NAME, "other"))
    with pytest.raises(SpecError, match="choose one by --method"):
        make_trial(str(two), "residual")
    assert make_trial(str(two), "residual", "other").name == "other"


def test_settings_change_what_they_name(tmp_path: Path) -> None:
    """All others stay at what reaches the ratio of the network's rows."""
    trial = make_trial(str(EXAMPLE), "residual", settings="growth = 0.25")
    assert trial.spec.rows[0].settings.table == {"sync_interval": 12, "growth": 0.25}
    needs = tmp_path / "needs.py"
    text = EXAMPLE.read_text()
    needs.write_text(
        text.replace('return {"sync_interval"', 'raise ValueError("no"); {"x"')
    )
    trial = make_trial(str(needs), "residual", settings="sync_interval = 5")
    assert trial.spec.rows[0].settings.table == {"sync_interval": 5}


@pytest.mark.parametrize(
    ("network", "interval", "num_trials"), [("perceptron", 48, 7), ("residual", 12, 3)]
)
def test_what_ships_is_there_and_its_length_said(
    network: str, interval: int, num_trials: int
) -> None:
    """On the perceptron the two best rates are tried at two more seeds, as all rows' were."""
    tried = make_trial(str(EXAMPLE), network)
    assert tried.spec.rows[0].settings.table == {"sync_interval": interval}
    words = duration_words(tried, 2)
    assert f"{num_trials} runs that tune the rate and 3 that count" in words
    minutes = int(words.split("about ")[1].split()[0])
    assert minutes <= 20, "on two cores"


@pytest.mark.parametrize("network", NETWORKS)
def test_all_rows_that_a_method_is_ranked_among_were_tuned_by_about_as_many_trials(
    network: str,
) -> None:
    shipped = NETWORKS[network]
    experiment = read_frames(shipped.runs).experiment
    earlier = (
        read_experiment(shipped.earlier_trials) if shipped.earlier_trials else None
    )
    for row in experiment.rows:
        assert _trials(experiment, row.row, earlier) in ("3", "4", "5", "6")


def test_trials_of_another_rate_or_settings_do_not_count_as_a_rows() -> None:
    experiment = read_frames(NETWORKS["perceptron"].runs).experiment
    earlier = read_experiment(SHIPPED_TUNINGS / "fashion_mnist_contrasts_tuning")
    assert _trials(experiment, "local_sgd-96", None) == "given, not tuned"
    assert _trials(experiment, "local_sgd-96", earlier) == "3"
    other_settings = []
    for trial_row in earlier.rows:
        other_settings.append(
            trial_row.model_copy(update={"settings": {"sync_interval": 12}})
        )
    others = earlier.model_copy(update={"rows": other_settings})
    assert _trials(experiment, "local_sgd-96", others) == "given, not tuned"


def test_the_difference_of_samples_is_welchs() -> None:
    """By hand: variances 1 and 4 of 3 and 5 runs."""
    first = np.array([1.0, 2.0, 3.0])
    second = np.array([2.0, 4.0, 4.0, 4.0, 6.0])
    found = unpaired(first, second)
    assert found.estimate == pytest.approx(-2.0)
    assert found.standard_error == pytest.approx((1 / 3 + 2 / 5) ** 0.5)
