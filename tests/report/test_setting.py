"""Settings in short, as a table has them."""

from __future__ import annotations

from typing import Any

import pytest

from cser_bench.harness.records.experiment import Row
from cser_bench.report.setting import setting_in_short

BLOCKS = {"kind": "block", "ratio": 48}
BITS = {"kind": "quantised_blocks", "bits": 4}


@pytest.mark.parametrize(
    ("settings", "wire", "expected"),
    [
        ({}, None, "–"),
        ({}, "fp16", "fp16"),
        ({"rank": 2}, None, "rank 2"),
        ({"compressor": {"kind": "top_k", "ratio": 192}}, None, "TopK(192)"),
        ({"compressor": BITS, "sync_interval": 1}, None, "4 bits"),
        ({"compressor": BITS, "sync_interval": 3}, None, "4 bits, H 3"),
        ({"sync_interval": "end"}, None, "H end"),
        (
            {"sync_interval": 24, "outer_lr": 0.7, "outer_momentum": 0.5},
            None,
            "H 24, outer 0.7 and 0.5",
        ),
        (
            {
                "gradient_compressor": BLOCKS,
                "error_compressor": {"kind": "block", "ratio": 3},
                "reset_interval": 16,
            },
            None,
            "R2 48, R1 3, H 16",
        ),
        (
            {
                "gradient_compressor": {"kind": "zero"},
                "error_compressor": BITS,
                "reset_interval": 3,
            },
            None,
            "R1 4 bits, H 3",
        ),
    ],
)
def test_a_setting_is_said_in_a_few_words(
    settings: dict[str, Any], wire: str | None, expected: str
) -> None:
    row = Row.model_construct(settings=settings, wire=wire)
    assert setting_in_short(row) == expected
