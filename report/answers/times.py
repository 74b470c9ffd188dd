"""Queries on step times, bandwidths and money, for the placeholders of answers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import pandas as pd
from scipy.optimize import brentq

from cser_bench.harness.errors import UsageError
from cser_bench.report.collection import Collection
from cser_bench.report.first_table import measured_row, need_of
from cser_bench.report.speed import comparisons
from cser_bench.report.speed.job import RESNET50
from cser_bench.report.speed.needed import FP16, needed_frame, tying_encoding
from cser_bench.report.speed.workload_model import SpeedStudy, WorkloadModel
from cser_bench.report.wording import NONE, factor, milliseconds, rate

WORKLOAD = "resnet50_v100"
"""The workload of the study of step times whose steps are quoted."""


@dataclass(frozen=True)
class Times:
    """Queries by the names of timed methods; each returns a text or raises UsageError.

    `step`, `speedup` and `encoding` are of the sessions that timed exactly what accuracy
    runs score, `timed` of the study of ResNet-50's step times, and others of the model of those steps.
    """

    collection: Collection
    _kept: dict[str, pd.DataFrame] = field(default_factory=dict)

    def step(self, method: str, gbits: float) -> str:
        """Return the emulated step of a scored method, as "32.7 ms"."""
        return f"{milliseconds(self._seconds(method, gbits))} ms"

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

    def has_over_needs(self, run: str, gbits: float) -> str:
        """Return the efficiency of "experiment/row" over what it needs, as tables print the two."""
        measured = measured_row(run)
        if math.isnan(measured.estimate):
            raise UsageError(f"the efficiency of {run} is no number")
        return f"{round(measured.estimate, 2) / float(self.need(run, gbits)):.1f}"

    def modelled_step(
        self, run: str, machines: int, workers: int, gbits: float = 10
    ) -> str:
        """Return a step of ResNet-50 that sends what "experiment/row" sent, as "113 ms".

        Args:
            workers: on each machine.
        """
        job = replace(
            RESNET50,
            num_machines=machines,
            workers_per_machine=workers,
            bits_per_second=1e9 * gbits,
        )
        return f"{milliseconds(measured_row(run).step_seconds(job))} ms"

    def encoding(self, method: str) -> str:
        """Return what a scored method's encoding adds to a step, as "1.5 ms"."""
        return f"{milliseconds(float(self._scored(method, 10)['encoding_seconds']))} ms"

    def tying_encoding(self, method: str, gbits: float) -> str:
        """Return the encoding a step at which a scored method's step is as long as the hook's."""
        budget = tying_encoding(
            self._seconds(method, gbits), self._seconds(FP16, gbits)
        )
        if budget is None:
            return NONE
        return f"{milliseconds(budget)} ms"

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

    def on_machines(self, machines: int, method: str = comparisons.PROPOSED) -> str:
        """Return how many times as fast as DDP a modelled step is, of 8 workers on some machines."""
        layouts = comparisons.layouts_frame(self._model, comparisons.AT)
        found = layouts[
            (layouts["machines"] == machines) & (layouts["method"] == method)
        ]
        if found.empty:
            raise UsageError(
                f"no layout on {machines} machines is modelled; give 8, 2 or 1"
            )
        return factor(found["over_ddp"].iloc[0])

    def pays_below(self, method: str, over: str) -> str:
        """Return the bandwidth below which a modelled step is more than 1.05x as fast as another's."""
        faster = partial(comparisons.speedup, self._model, method, over)
        return rate(comparisons.highest_rate(faster, comparisons.CLEARLY))

    def holds_up_to(self, headline: str, compute_ms: float) -> str:
        """Return the bandwidth up to which a published speed-up over DDP holds.

        Args:
            headline: words of it, as "ImageNet".
            compute_ms: of a step's passes.
        """
        found = [each for each in comparisons.HEADLINES if headline in each.words]
        if not found:
            raise UsageError(
                f"no published speed-up is called {headline!r}; give ImageNet or CIFAR"
            )
        model = self._study.models[found[0].workload]
        slower = compute_ms / 1e3 / model.workload.compute_seconds
        highest = 0.0
        for method in comparisons.PROPOSED_AT_RATIOS:
            if method in model.methods:
                over_ddp = partial(
                    comparisons.speedup, model, method, comparisons.DDP, slower=slower
                )
                up_to = comparisons.highest_rate(over_ddp, found[0].target)
                # NaN where it never holds, which is greater than nothing.
                if up_to > highest:
                    highest = up_to
        return rate(highest)

    def cost(self, machine: str, method: str) -> str:
        """Return the dollars of 1,000 modelled steps of 8 GPUs in machines of one kind."""
        lines = self._frame("costs")
        found = lines[(lines["machine"] == machine) & (lines["method"] == method)]
        if found.empty:
            raise UsageError(f"no cost of {method} on {machine} is modelled")
        return f"{found['dollars_per_1000_steps'].iloc[0]:.3f}"

    def ratio_needed(self, gbits: float) -> str:
        """Return how many times less DDP must send for a step at most 10 % longer than its passes."""
        ratio = comparisons.needed_ratio_at(self._model, 1e9 * gbits)
        if math.isnan(ratio):
            raise UsageError(f"no ratio is enough at {gbits} Gb/s")
        return f"{ratio:.3g}"

    def ratio_needed_below(self, ratio: float) -> str:
        """Return the bandwidth below which DDP must send at least so many times less."""

        def beyond(log_bits: float) -> float:
            """Return how far the needed ratio is above that one, by its logarithm."""
            needed = comparisons.needed_ratio_at(self._model, math.exp(log_bits))
            # Where no ratio is enough, one far above, so that the root is bracketed.
            if math.isnan(needed):
                needed = comparisons.MOST_RATIO
            return math.log(needed) - math.log(ratio)

        ends = (math.log(comparisons.LOWEST), math.log(comparisons.HIGHEST))
        return rate(math.exp(brentq(beyond, *ends, xtol=1e-6)))

    def model_error(self) -> str:
        """Return by how much the model of a step errs on average, in percent."""
        return f"{100 * self._study.timed_steps['error'].abs().mean():.1f} %"

    def _scored(self, method: str, gbits: float) -> pd.Series:
        """Return a scored method's line of `needed_frame` at a bandwidth."""
        lines = self._frame("scored")
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

    def _frame(self, kind: str) -> pd.DataFrame:
        """Return a table of step times, worked out once."""
        make = {
            "scored": lambda: needed_frame(self.collection.scored),
            "costs": lambda: comparisons.costs_frame(self._model),
        }
        if kind not in self._kept:
            self._kept[kind] = make[kind]()
        return self._kept[kind]

    @cached_property
    def _study(self) -> SpeedStudy:
        if self.collection.speed is None:
            raise UsageError("no study of step times ships")
        return self.collection.speed

    @property
    def _model(self) -> WorkloadModel:
        return self._study.models[WORKLOAD]
