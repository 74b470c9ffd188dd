"""The examples, started by torchrun as they stand: equal at the consensus, learning, the same once resumed."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from algorithms import load_checkpoint, newest_checkpoint, save_checkpoint

ROOT = Path(__file__).parents[2]
NUM_WORKERS = 2
LAST = {"plain": 4, "transformers_trainer": 5, "lightning_trainer": 8, "timm_ema": 4, "nanogpt": 3}
"""Which `consensus()` of each example is its last evaluation; of nanoGPT's two methods, the first one's."""
NEEDS = {"transformers_trainer": "accelerate", "lightning_trainer": "lightning", "timm_ema": "timm"}


@dataclass(frozen=True)
class Started:
    """What an example printed, its exit status, and what each rank saw at each `consensus()`."""

    said: str
    status: int
    ranks: list[list[dict[str, Any]]]


def start(name: str, folder: Path, attempt: int, killed_after: int) -> Started:
    log = folder / f"attempt-{attempt}"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={NUM_WORKERS}"]
    watched = [ROOT / "tests/examples/watched.py", log, killed_after, ROOT / f"examples/{name}.py", folder / "saved"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*launcher, *map(str, watched)], cwd=folder, env=env, capture_output=True, text=True)
    lines = [Path(f"{log}-{rank}.jsonl").read_text().splitlines() for rank in range(NUM_WORKERS)]
    return Started(done.stdout + done.stderr, done.returncode, [[json.loads(each) for each in rank] for rank in lines])


def losses(said: str) -> list[float]:
    """Those that were evaluated, which are printed as `loss 0.25` or `'eval_loss': '0.25'`."""
    return [float(number) for number in re.findall(r"\b(?:eval_)?loss(?: |': ')(\d+\.\d+)(?!.*learning_rate)", said)]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", LAST)
def test_an_example(name: str, tmp_path: Path) -> None:
    """Rank 1 kills itself after the last evaluation, before that is saved; then the same command goes on."""
    if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None:
        pytest.skip(f"{NEEDS[name]} is not installed: pip install -e '.[examples]'")
    whole = start(name, tmp_path, 1, LAST[name])
    assert whole.status != 0 and "-9" in whole.said, whole.said
    resumed = start(name, tmp_path, 2, 0)
    assert resumed.status == 0, resumed.said
    for ranks in (whole.ranks, resumed.ranks):
        assert [seen["inside"] for seen in ranks[0]] == [seen["inside"] for seen in ranks[1]]
    for uninterrupted, went_on in zip(whole.ranks, resumed.ranks, strict=True):
        assert len(uninterrupted) == LAST[name]
        steps = sorted({seen["step"] for seen in uninterrupted})
        assert went_on[0]["step"] >= steps[-2] > 0, "it began anew"
        assert next(seen for seen in went_on if seen["step"] == steps[-1]) == uninterrupted[-1]
    assert whole.ranks[0][-1]["own"] != whole.ranks[1][-1]["own"]
    first, *_, last = losses(whole.said)
    assert last < first - 0.02
    assert last in losses(resumed.said)


def test_examples_are_short_and_each_is_tried() -> None:
    files = sorted((ROOT / "examples").glob("*.py"))
    assert {path.stem for path in files} == LAST.keys()
    assert all(len(path.read_text().splitlines()) <= 80 for path in files)


def test_readme_quotes_the_plain_loop() -> None:
    """What is left of its difference is in that script, line by line and in that order."""
    shown = (ROOT / "README.md").read_text().split("```diff\n")[1].split("```")[0].splitlines()
    lines = iter((ROOT / "examples/plain.py").read_text().splitlines())
    assert [line for line in shown if not line.startswith("-") and line[1:] not in lines] == []


def test_what_not_all_have_saved_is_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a run ended between two workers' files, or while one was written."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert newest_checkpoint(tmp_path / "none") is None
    for step, ranks in {9: "01", 10: "01", 11: "0"}.items():
        for rank in ranks:
            monkeypatch.setenv("RANK", rank)
            save_checkpoint({"step": step, "rank": rank}, tmp_path / f"step-{step}")
    (tmp_path / "step-11" / "worker-1-of-2.partial").touch()
    newest = newest_checkpoint(tmp_path)
    assert newest == tmp_path / "step-10"
    assert load_checkpoint(newest) == {"step": 10, "rank": "0"}
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert newest_checkpoint(tmp_path) is None
