"""Queries on step times, for the placeholders of answers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from cser_bench.harness.errors import UsageError
from cser_bench.report.collection import Collection
from cser_bench.report.first_table import measured_row, need_of
from cser_bench.report.speed import comparisons
from cser_bench.report.speed.needed import needed_frame
from cser_bench.report.speed.workload_model import SpeedStudy, WorkloadModel
from cser_bench.report.wording import factor, milliseconds

WORKLOAD = "resnet50_v100"
"""The workload of the study of step times whose steps are quoted."""


@dataclass(frozen=True)
class Times:
    """Queries by the names of timed methods; each returns a text or raises UsageError.

    `speedup` is of the sessions that timed exactly what accuracy runs score, `timed` of the study of
    ResNet-50's step times, `modelled` of the model of those steps.
    """

    collection: Collection

    def speedup(self, method: str, over: str, gbits: float) -> str:
        """Return how many times as fast a scored method's step is as another's."""
        return factor(self._seconds(over, gbits) / self._seconds(method, gbits))

    def need(self, run: str, gbits: float) -> str:
        """Return the efficiency at which "experiment/row" ties with the hook, with encoding.

        The step is emulated where this very setting was timed, else modelled.
        """
        needed = need_of(measured_row(run), 1e9 * gbits)
        if math.isnan(needed):
            raise UsageError(f"no encoding time is known of {run}, so its need is not")
        return f"{needed:.2f}"

    def timed(self, method: str, over: str = "", machines: int = 8) -> str:
        """Return a timed step at 10 Gb/s, or with `over` how many times as fast it is."""
        steps = self._study.timed_steps
        steps = steps[(steps["workload"] == WORKLOAD) & (steps["machines"] == machines)]
        # Rates are timed as the dilation lets them be, not quite at 10 Gb/s.
        steps = steps[(steps["bits_per_second"] / comparisons.AT - 1).abs() < 0.01]
        # The session with the most methods, where there are several.
        session = steps["timing"].value_counts().index[:1]
        # Index: method.
        seconds = steps[steps["timing"].isin(session)].set_index("method")["seconds"]
        for name in filter(None, (method, over)):
            if name not in seconds:
                raise UsageError(f"no step of {name} was timed on {machines} machines")
        if over:
            return factor(seconds[over] / seconds[method])
        return f"{milliseconds(seconds[method])} ms"

    def modelled(self, method: str, over: str, gbits: float) -> str:
        """Return how many times as fast a modelled step is as another's."""
        return factor(comparisons.speedup(self._model, method, over, 1e9 * gbits))

    def _scored(self, method: str, gbits: float) -> pd.Series:
        """Return a scored method's line of `needed_frame` at a bandwidth."""
        lines = self._needed
        at_rate = (lines["bits_per_second"] / (1e9 * gbits) - 1).abs() < 0.01
        found = lines[at_rate & (lines["method"] == method)]
        if found.empty:
            names = ", ".join(dict.fromkeys(lines["method"]))
            raise UsageError(
                f"no step of {method} was timed at {gbits:g} Gb/s; name one of {names}"
            )
        return found.iloc[0]

    def _seconds(self, method: str, gbits: float) -> float:
        return float(self._scored(method, gbits)["seconds"])

    @cached_property
    def _needed(self) -> pd.DataFrame:
        """`needed_frame` of the scored sessions."""
        return needed_frame(self.collection.scored)

    @cached_property
    def _study(self) -> SpeedStudy:
        if self.collection.speed is None:
            raise UsageError("no study of step times ships")
        return self.collection.speed

    @property
    def _model(self) -> WorkloadModel:
        return self._study.models[WORKLOAD]
