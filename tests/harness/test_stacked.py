"""Workers stacked in one thread do what workers that are threads do, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from algorithms import Compressor
from algorithms.registry import algorithms, compressors, settings
from harness.workers.attempt import attempt_in_threads, attempt_stacked
from tests.harness.support import comparable, job_for, settings_of, small_config

MODELS: dict[str, dict[str, Any]] = {
    "batched": {"name": "mlp", "options": {"hidden": 9}},
    "in turn": {"name": "small_cnn", "options": {"widths": [4, 8]}},
}
TABLES: dict[str, dict[str, Any]] = {
    "block": {"kind": "block", "ratio": 4},
    "blocks": {"kind": "block", "ratio": 4, "num_blocks": 16},
    "random_k": {"kind": "random_k", "ratio": 5.0},
    "per_tensor_block": {"kind": "per_tensor_block", "row_ratio": 2.0, "column_ratio": 2.0, "tensor_ratio": 2.0},
    "top_k": {"kind": "top_k", "ratio": 7.0},
    "sign": {"kind": "sign"},
    "qsgd": {"kind": "qsgd", "bits": 4},
    "identity": {"kind": "identity"},
    "zero": {"kind": "zero"},
}


def takes(name: str, table: dict[str, Any]) -> bool:
    """Whether the method has compressors, and all of them may be this one."""
    kinds = [kind for kind, _ in settings(algorithms()[name]).values() if isinstance(kind, type)]
    wanted = [kind for kind in kinds if issubclass(kind, Compressor)]
    return bool(wanted) and all(issubclass(compressors()[table["kind"]], kind) for kind in wanted)


CASES = [(name, key) for name in algorithms() for key in TABLES if key == "block" or takes(name, TABLES[key])]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("name", "key"), CASES)
def test_stacked_equals_threads(name: str, key: str, model: str, tmp_path: Path) -> None:
    config = small_config(
        name, settings_of(name, TABLES[key]), model=MODELS[model], num_workers=4, batch_size=10,
        partition={"kind": "contiguous"},
    )  # fmt: skip
    stacked, threads = job_for(config, tmp_path / "stacked"), job_for(config, tmp_path / "threads")
    assert attempt_stacked(stacked), (stacked.folder / "failure.json").read_text()
    assert attempt_in_threads(threads)
    assert comparable(stacked.folder) == comparable(threads.folder)
