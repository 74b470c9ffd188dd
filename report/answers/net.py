"""Queries on net speed-ups, where steps were timed and scored on one network."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd

from cser_bench.harness.errors import UsageError
from cser_bench.report.collection import Collection
from cser_bench.report.efficiency_section import efficiency_cell, efficiency_of
from cser_bench.report.speed.needed import FP16, FP32
from cser_bench.report.speed.timed import conditions_frame
from cser_bench.report.wording import milliseconds

EXPERIMENT = "gpt_text_methods"
"""What was timed and scored at the very same settings; its timed methods have its rows' names."""


@dataclass(frozen=True)
class Net:
    """Queries by rows of `EXPERIMENT` and a latency; each returns a text or raises UsageError.

    The net speed-up of a method is w / n. Its statistical efficiency w is DDP's steps to the score
    that it reaches over its own, and n is its step time over DDP's, so w / n is DDP's time to that
    score over its own.
    """

    collection: Collection
    _kept: dict[float, pd.DataFrame] = field(default_factory=dict)

    def net(
        self, row: str, latency_ms: float = 0, form: Literal["short", "cell"] = "cell"
    ) -> str:
        """Return a row's net speed-up over DDP in fp32, as "2.5 (2.2 to 2.9)", or in short "2.5"."""
        cell = _factor_cell(self._line(row, latency_ms), FP32)
        if form == "short":
            return cell.partition(" (")[0]
        return cell

    def net_table(self, *rows: str, latency_ms: float = 0) -> str:
        """Return a table of rows: step, what it needs and has, and the net speed-ups."""
        lines = [
            "| method | step, ms | needs | has (95 % CI) | net, over DDP (fp32) | net, over DDP in 16 bits |",
            "| --- | ---: | ---: | ---: | ---: | ---: |",
        ]
        for row in rows:
            line = self._line(row, latency_ms)
            cells = [
                line["label"],
                milliseconds(line["seconds"]),
                f"{line['needs']:.2f}",
                efficiency_cell(line),
                _factor_cell(line, FP32),
                _factor_cell(line, FP16),
            ]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)

    def _line(self, row: str, latency_ms: float) -> dict[str, Any]:
        """Return a row's line of `net_speedups`, which is worked out once a latency."""
        if latency_ms not in self._kept:
            self._kept[latency_ms] = self._speedups(latency_ms)
        frame = self._kept[latency_ms]
        lines = frame[frame["row"] == row].to_dict("records")
        if not lines or lines[0]["kind"] == "none":
            raise UsageError(f"{row} was not both timed and scored in {EXPERIMENT}")
        return {str(key): value for key, value in lines[0].items()}

    def _speedups(self, latency_ms: float) -> pd.DataFrame:
        """Return `net_speedups` on links of a latency."""
        frames = self.collection.find(EXPERIMENT)
        if self.collection.speed is None or frames is None:
            raise UsageError(f"no session has steps of {EXPERIMENT}")
        steps = conditions_frame(self.collection.speed.text)
        steps = steps[(1e3 * steps["latency_seconds"] - latency_ms).abs() < 1e-6]
        if steps.empty:
            raise UsageError(
                f"no session of {EXPERIMENT} has links of {latency_ms:g} ms"
            )
        # By test loss, which is the score of a text.
        worth = efficiency_of(frames).drop_duplicates("row")
        return net_speedups(worth, steps)


def net_speedups(worth: pd.DataFrame, steps: pd.DataFrame) -> pd.DataFrame:
    """Return a line a row that was timed: its step, its efficiency and its net speed-ups.

    Args:
        worth: `efficiency_frame`, a line a row.
        steps: `conditions_frame` of one latency; methods have the rows' names.

    Columns: those of `worth`, `label`, `seconds`, `needs`, and by the names of the baselines (`FP32`,
    `FP16`) their step over the row's. The step in 16 bits is modelled: the passes, and half of what
    DDP's step takes beyond them.
    """
    # Index: method.
    by_method = steps.set_index("method")
    ddp = by_method.loc[FP32]
    found = worth[worth["row"].isin(by_method.index)].copy()
    timed = by_method.loc[found["row"]]
    # Without their index, which is another one: lines are in the same order.
    found["label"] = timed["label"].to_numpy()
    found["seconds"] = timed["seconds"].to_numpy()
    found["needs"] = found["seconds"] / ddp["seconds"]
    found[FP32] = ddp["seconds"] / found["seconds"]
    found[FP16] = (ddp["seconds"] + ddp["passes_seconds"]) / 2 / found["seconds"]
    return found


def _factor_cell(line: dict[str, Any], baseline: str) -> str:
    """Write a row's net speed-up over a baseline, of its step and its efficiency."""
    faster = float(line[baseline])
    if line["kind"] == "estimate":
        ends = f"{faster * line['low']:.1f} to {faster * line['high']:.1f}"
        return f"{faster * line['efficiency']:.1f} ({ends})"
    return f"{line['kind']} {faster * line['efficiency']:.1f}"
