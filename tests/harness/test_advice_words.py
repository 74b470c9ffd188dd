"""What `advise` fills in itself: an experiment's numbers, and the size of a saved model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from harness.__main__ import main
from harness.cli.commands import filled
from harness.plan.plan import plan_experiment
from tests.harness.support import small_spec, write_spec


def _options(words: list[str]) -> dict[str, str]:
    return dict(zip(words[::2], words[1::2], strict=True))


def test_words_without_files_go_on_as_they_are() -> None:
    words = ["--parameters", "1M", "--steps", "10", "--help"]
    assert filled(words) == (words, "")


def test_an_experiment_says_what_its_baseline_is(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, small_spec())
    planned = plan_experiment(str(spec), tmp_path)
    [row] = [row for row in planned.experiment.rows if row.row == planned.experiment.baseline]
    words, said = filled(["--spec", str(spec), "--results", str(tmp_path), "--bandwidth", "1Gb/s"])
    options = _options(words)
    assert float(options.pop("--compute-ms")) > 0
    assert options == {
        "--bandwidth": "1Gb/s",
        "--parameters": str(row.num_parameters),
        "--steps": str(row.num_steps),
        "--workers": str(planned.runs[0].config.num_workers),
    }
    assert f"{row.num_parameters:,} parameters" in said and "ms of compute" in said
    words, _ = filled(["--spec", str(spec), "--results", str(tmp_path), "--steps", "7", "--layout", "2x1"])
    assert _options(words)["--steps"] == "7" and "--workers" not in words


def test_a_saved_models_numbers_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    torch.save({"model": model.state_dict(), "epoch": 3}, path)
    words, said = filled(["--model", str(path), "--steps", "5"])
    # A batch norm's count of batches is a whole number, and no parameter; its running statistics are counted.
    assert _options(words) == {"--steps": "5", "--parameters": str(3 * 4 + 4 + 4 * 4)}
    assert said == f"{path} holds 32 parameters."


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "there is no file"), (b"no model", "is no state_dict that torch.save wrote"), ("empty", "holds no real")],
)
def test_files_that_cannot_be_read_are_one_sentence(
    content: bytes | str | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.pt"
    if content == "empty":
        torch.save({"epoch": 3}, path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    assert main(["advise", "--model", str(path), "--steps", "5"]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_an_experiment_that_is_not_there_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["advise", "--spec", "nowhere.toml"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
