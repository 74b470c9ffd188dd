"""What there is to answer from: experiments and step times, one's own where they were run, else
those that ship."""

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from cser_bench.harness.errors import UsageError
from cser_bench.harness.records.store import read_record
from cser_bench.harness.records.timings import Timing
from cser_bench.report.frame import Frames, read_frames
from cser_bench.report.regime import claimed_contrasts
from cser_bench.report.speed.workload_model import STUDY, SpeedStudy, read_study
from cser_bench.report.statistics import UNKNOWN, difference

SHIPPED = Path(__file__).resolve().parents[2] / "results"
"""Records that come with the project."""

TWO_LEVEL, CONVOLUTIONS, RESIDUAL, GPT = (
    "study_two_level",
    "study_network_cnn",
    "resnet_regime",
    "gpt_text",
)

DENSENET, SHUFFLENET = "study_network_densenet", "study_network_shufflenet"

NETWORKS = {
    CONVOLUTIONS: "convolutions", DENSENET: "a DenseNet", SHUFFLENET: "a ShuffleNet", RESIDUAL: "a residual network",
    GPT: "a GPT",
}  # fmt: skip
"""What answers that rest on a perceptron say of other networks, by experiment."""

CONTRAST = [
    "row",
    "reference",
    "label",
    "other",
    "ratio",
    "learning_rate",
    "models_sent",
    "link_models",
    "other_rate",
]
CONTRAST += ["estimate", "low", "high", "kind", "p_holm", "verdict", "declared"]
"""Columns of a table of contrasts."""


@dataclass(frozen=True)
class Answer:
    """What a question's template is given.

    frame: all that was found, for the CSV file. rows: what the template's table shows of it; None
        is all.
    """

    frame: pd.DataFrame
    numbers: Mapping[str, Any]
    figure: Figure | None = None
    rows: pd.DataFrame | None = None


@dataclass(frozen=True)
class Compared:
    """An experiment's frames and its declared contrasts."""

    frames: Frames

    @cached_property
    def contrasts(self) -> dict[tuple[str, str], dict[Hashable, Any]]:
        """The declared contrasts by row and reference. An experiment that cannot tell a loss claims
        nothing."""
        lines = claimed_contrasts(self.frames).to_dict("records")
        return {(line["row"], line["reference"]): line for line in lines}

    @property
    def baseline(self) -> str:
        return self.frames.experiment.baseline or ""

    @property
    def is_whole(self) -> bool:
        """Whether none of its runs is still to come."""
        return not self.frames.runs["status"].isin(("missing", "failed")).any()

    def contrast(self, row: str, reference: str) -> dict[str, Any]:
        """Row minus reference with its 95 % interval, and what both are.

        `kind`, `p_holm`, `verdict` and `declared` are None where the two were not declared as a
        contrast.
        """
        found = difference(self.frames, row, reference) or UNKNOWN
        low, high = found.interval()
        mine, theirs = self.frames.by_row.loc[row], self.frames.by_row.loc[reference]
        line = {
            "row": row,
            "reference": reference,
            "label": mine["label"],
            "other": theirs["label"],
        }
        line |= {key: mine[key] for key in ("ratio", "learning_rate", "models_sent", "link_models")}
        line |= {
            "other_rate": theirs["learning_rate"],
            "estimate": found.estimate,
            "low": low,
            "high": high,
        }
        declared = self.contrasts.get((row, reference), {})
        return line | {key: declared.get(key) for key in ("kind", "p_holm", "verdict", "declared")}

    def contrasts_of(self, pairs: Iterable[tuple[str, str]]) -> pd.DataFrame:
        """The contrast of each pair that has finished runs, a line each."""
        return pd.DataFrame(
            [self.contrast(*pair) for pair in pairs if self.has(*pair)], columns=CONTRAST
        )

    @property
    def losses(self) -> pd.DataFrame:
        """Each method of which it was asked what it loses, against the baseline."""
        declared = [each.row for each in self.frames.contrasts if each.kind == "non-inferiority"]
        return self.contrasts_of((row, self.baseline) for row in declared)

    def has(self, *rows: str) -> bool:
        """Whether all these rows have a finished run."""
        return all(row in self.frames.by_row.index and len(self.frames.done(row)) for row in rows)

    @property
    def regime(self) -> dict[str, Any]:
        """Where its numbers were seen, for the templates."""
        experiment, rows = self.frames.experiment, self.frames.rows
        seeds = [len(self.frames.done(row)) for row in rows["row"][rows["base"].isna()]]
        return {
            "name": experiment.name,
            "task": experiment.task,
            "workers": experiment.config["num_workers"],
            "num_steps": int(rows["num_steps"].max()),
            "num_parameters": int(rows["num_parameters"].iloc[0]),
            "seeds": sorted({min(seeds), max(seeds)}),
        }


@dataclass(frozen=True)
class Evidence:
    """Reads an experiment when it is first asked for. `places`: folders of results, one's own
    before those shipped."""

    places: tuple[Path, ...]
    known: dict[str, Compared | None] = field(default_factory=dict)

    def experiment(self, name: str) -> Compared | None:
        """An experiment; None where none of its runs has a result anywhere.

        Raises:
            RecordError: a record is damaged or of another version.
        """
        if name not in self.known:
            folders = [place / part / name for place in self.places for part in ("", "reference")]
            found = (
                read_frames(folder) for folder in folders if (folder / "experiment.json").exists()
            )
            self.known[name] = next(
                (Compared(each) for each in found if (each.runs["status"] == "done").any()), None
            )
        return self.known[name]

    def __getitem__(self, name: str) -> Compared:
        """An experiment that the question needs, so that it is there."""
        found = self.experiment(name)
        assert found is not None, f"the head of a template does not name {name}"
        return found

    def contrasts(
        self, parts: Iterable[tuple[str, Iterable[tuple[str, str]], Mapping[str, Any]]]
    ) -> pd.DataFrame:
        """Contrasts of several experiments in one table: of each its name, the pairs, and columns
        that are added."""
        known = ((self.experiment(name), pairs, columns) for name, pairs, columns in parts)
        tables = [
            each.contrasts_of(pairs).assign(**columns) for each, pairs, columns in known if each
        ]
        found = [table for table in tables if len(table)]
        return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=CONTRAST)

    def elsewhere(
        self, pairs: Mapping[str, Iterable[tuple[str, str]]]
    ) -> list[dict[Hashable, Any]]:
        """Contrasts on other networks, by experiment: a line each, with the network and its number
        of parameters."""
        known = {name: each for name in pairs if (each := self.experiment(name))}
        parts = (
            (
                name,
                pairs[name],
                {"network": NETWORKS[name], "num_parameters": each.regime["num_parameters"]},
            )
            for name, each in known.items()
        )
        return self.contrasts(parts).to_dict("records")

    @cached_property
    def speed(self) -> SpeedStudy | None:
        """The study of step times; None where there is none.

        Raises:
            RecordError: a record is damaged.
        """
        folder = next(
            (place / "speedups" for place in self.places if (place / "speedups" / STUDY).exists()),
            None,
        )
        return read_study(folder) if folder else None

    @cached_property
    def scored(self) -> list[Timing]:
        """Sessions that timed exactly the settings that accuracy runs score."""
        found = [
            path for place in self.places for path in sorted(place.glob("*speedups/scored-*.json"))
        ]
        return [read_record(path, Timing) for path in found]


def evidence_of(results: Path) -> Evidence:
    """One's own results first.

    Raises:
        UsageError: there is no such folder.
    """
    if not results.is_dir():
        raise UsageError(
            f"there is no folder {results}; give the folder of results, as --results results"
        )
    return Evidence(tuple(dict.fromkeys((results.resolve(), SHIPPED.resolve()))))
