"""What there is to answer from: experiments and step times.

They are one's own where all their runs are done, and else those that ship.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from matplotlib.figure import Figure

from cser_bench.harness.errors import UsageError
from cser_bench.harness.records.experiment import PlannedEvidence, Role, RowRole
from cser_bench.harness.records.shipped import TIMINGS, ships, take
from cser_bench.harness.records.store import read_record
from cser_bench.harness.records.timings import Timing
from cser_bench.report.frame import Frames, evidence_in, read_frames
from cser_bench.report.regime import claimed_contrasts
from cser_bench.report.speed.workload_model import STUDY, SpeedStudy, read_study
from cser_bench.report.statistics import UNKNOWN, difference
from cser_bench.report.wording import FORMATS

Speaker = RowRole | Literal["baseline", "floor"]
"""What a row can speak for in an answer: a family of methods, everything sent, or nothing sent."""

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
    "estimate",
    "low",
    "high",
    "kind",
    "p_holm",
    "verdict",
    "declared",
    "margin",
    "unit",
]
"""Columns of a table of contrasts."""

OF_DECLARED = ("kind", "p_holm", "verdict", "declared")
"""Those of them that only a declared contrast has."""


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
    """An experiment's frames, its declared contrasts, and what it is evidence for."""

    frames: Frames
    about: PlannedEvidence

    @property
    def name(self) -> str:
        return self.frames.experiment.name

    @property
    def network(self) -> str:
        """The network without its article, as tables have it."""
        return self.about.network.removeprefix("a ").removeprefix("an ")

    @property
    def the_network(self) -> str:
        return f"the {self.network}"

    @property
    def kind(self) -> str:
        """The network with its optimiser, as tables of kinds of network have it."""
        return self.about.kind or self.network

    @property
    def unit(self) -> str:
        """What losses are told in."""
        return self.frames.metric.loss_unit

    @property
    def baseline(self) -> str:
        return self.frames.experiment.baseline or ""

    @property
    def is_whole(self) -> bool:
        """Whether none of its runs is still to come."""
        return not self.frames.runs["status"].isin(("missing", "failed")).any()

    @property
    def num_parameters(self) -> int:
        return int(self.frames.rows["num_parameters"].iloc[0])

    @property
    def folder_in_results(self) -> str:
        return folder_in_results(self.frames)

    def mean_of(self, row: str) -> str:
        """Write the mean score of a row's runs with its unit."""
        mean = float(self.frames.done(row).mean())
        metric = self.frames.metric
        if not metric.is_share:
            return f"{FORMATS['nats'](mean)} {self.unit}"
        unit = "%" if metric.unit == "percent" else metric.label
        return f"{FORMATS['percent'](mean)} {unit}"

    def lost(self, estimate: float) -> dict[str, Any]:
        """Return a difference of scores as what `report.verdicts` says in words."""
        return {"estimate": estimate, "unit": self.unit}

    def row(self, speaker: Speaker) -> str | None:
        """Return the row that speaks for a family; None where the experiment has none."""
        if speaker == "baseline":
            return self.frames.experiment.baseline
        if speaker == "floor":
            return self.frames.experiment.floor
        return self.about.rows.get(speaker)

    def pairs(self, *pairs: tuple[Speaker, Speaker]) -> list[tuple[str, str]]:
        """Return the rows of each pair of speakers, without pairs that lack one, each pair once."""
        rows: list[tuple[str, str]] = []
        for first, second in pairs:
            row = self.row(first)
            reference = self.row(second)
            if row and reference and (row, reference) not in rows:
                rows.append((row, reference))
        return rows

    def value(self, row: str | None, column: str) -> Any:
        """Return a row's entry in a column of the frame of rows."""
        rows: Any = self.frames.by_row
        return rows.loc[row, column]

    def is_of_family(self, row: str, family: str) -> bool:
        """Tell whether a row's algorithm is of this family."""
        families = self.frames.experiment.families
        algorithm = self.value(row, "algorithm")
        return families.get(algorithm) == family

    def rows_of_family(self, family: str) -> list[str]:
        """List the rows of this family of algorithms, of the experiment's own length and rule."""
        own = [row.row for row in self.frames.experiment.rows if row.base is None]
        return [row for row in own if self.is_of_family(row, family)]

    @cached_property
    def contrasts(self) -> dict[tuple[str, str], dict[Hashable, Any]]:
        """The declared contrasts by row and reference.

        An experiment that cannot tell a loss claims nothing.
        """
        lines = claimed_contrasts(self.frames).to_dict("records")
        return {(line["row"], line["reference"]): line for line in lines}

    def contrast(self, row: str, reference: str) -> dict[str, Any]:
        """Return row minus reference with its 95 % interval, and what both are.

        `kind`, `p_holm`, `verdict` and `declared` are None where the two were not declared as a
        contrast.
        """
        known = difference(self.frames, row, reference) or UNKNOWN
        low, high = known.interval()
        mine = self.frames.by_row.loc[row]
        theirs = self.frames.by_row.loc[reference]
        declared = self.contrasts.get((row, reference), {})
        return {
            "row": row,
            "reference": reference,
            "label": mine["label"],
            "other": theirs["label"],
            "ratio": mine["ratio"],
            "learning_rate": mine["learning_rate"],
            "models_sent": mine["models_sent"],
            "link_models": mine["link_models"],
            "other_rate": theirs["learning_rate"],
            "estimate": known.estimate,
            "low": low,
            "high": high,
            **{key: declared.get(key) for key in OF_DECLARED},
            "margin": declared.get("margin", self.frames.experiment.margin),
            "unit": self.unit,
        }

    def contrasts_of(self, pairs: Iterable[tuple[str, str]]) -> pd.DataFrame:
        """Return the contrast of each pair that has finished runs, a line each."""
        lines = [self.contrast(*pair) for pair in pairs if self.has(*pair)]
        return pd.DataFrame(lines, columns=CONTRAST)

    @property
    def losses(self) -> pd.DataFrame:
        """Each method of which it was asked what it loses, against the baseline."""
        pairs = []
        for contrast in self.frames.contrasts:
            if contrast.kind == "non-inferiority":
                pairs.append((contrast.row, self.baseline))
        return self.contrasts_of(pairs)

    def has(self, *rows: str) -> bool:
        """Tell whether all these rows have a finished run."""
        known = self.frames.by_row.index
        return all(row in known and len(self.frames.done(row)) for row in rows)

    def speaks_for(self, *speakers: Speaker) -> bool:
        """Tell whether each of these has a row with a finished run."""
        rows = [self.row(speaker) for speaker in speakers]
        return all(row is not None and self.has(row) for row in rows)

    @property
    def regime(self) -> dict[str, Any]:
        """Where its numbers were seen, for the templates."""
        experiment = self.frames.experiment
        rows = self.frames.rows
        own = rows.loc[rows["base"].isna(), "row"]
        # Rows may differ in their seeds: the fewest and the most are told.
        num_seeds = [len(self.frames.done(row)) for row in own]
        return {
            "name": experiment.name,
            "dataset": self.about.dataset,
            "network": self.about.network,
            "workers": experiment.config["num_workers"],
            "num_steps": int(rows["num_steps"].max()),
            "num_parameters": self.num_parameters,
            "seeds": sorted({min(num_seeds), max(num_seeds)}),
            "main_ratio": experiment.main_ratio,
            "margin": experiment.margin,
            "unit": self.unit,
        }


def folder_in_results(frames: Frames) -> str:
    """Return where an experiment lies in results/: those that others are compared with lie deeper."""
    folder = frames.folder
    if folder.parent.name == "reference":
        return f"reference/{folder.name}"
    return folder.name


Part = tuple[Compared, Iterable[tuple[str, str]], Mapping[str, Any]]
"""An experiment, pairs of its rows, and columns that a table of their contrasts has besides."""


@dataclass(frozen=True)
class Evidence:
    """Experiments and step times; each is read when first asked for.

    folders: theirs; of two of one name the first counts.
    known: the experiments read so far, by name; None for one that there is nothing of.
    """

    folders: tuple[Path, ...]
    known: dict[str, Compared | None] = field(default_factory=dict)

    @cached_property
    def about(self) -> dict[str, PlannedEvidence]:
        """What each experiment is evidence for, by name, in the order that they ask for.

        Raises:
            RecordError: a plan is damaged or of another version.
        """
        return evidence_in(self.folders)

    def experiment(self, name: str) -> Compared | None:
        """Return an experiment; None where it is evidence for nothing, or has no finished run.

        Raises:
            RecordError: a record is damaged or of another version.
        """
        if name not in self.known:
            self.known[name] = self._read(name)
        return self.known[name]

    def _read(self, name: str) -> Compared | None:
        if name not in self.about:
            return None
        for folder in self.folders:
            if folder.name != name:
                continue
            frames = read_frames(folder)
            # Runs that all diverged have no score to answer from.
            is_done = frames.runs["status"] == "done"
            if is_done.any():
                # A plan that does not say what it is evidence for goes by another of its name.
                about = frames.experiment.evidence or self.about[name]
                return Compared(frames, about)
        return None

    def all_of(self, *roles: Role, network: str | None = None) -> list[Compared]:
        """Return the experiments that are evidence in one of these roles, each once.

        Args:
            network: as their specs have it; None for all.
        """
        experiments = []
        for name, about in self.about.items():
            if {*roles}.isdisjoint(about.roles) or network not in (None, about.network):
                continue
            known = self.experiment(name)
            if known is not None:
                experiments.append(known)
        return experiments

    def first(self, role: Role, network: str | None = None) -> Compared | None:
        """Return the first experiment in this role; None where there is none."""
        experiments = self.all_of(role, network=network)
        return experiments[0] if experiments else None

    def __getitem__(self, role: Role) -> Compared:
        """Return an experiment that the question needs, so that it is there."""
        known = self.first(role)
        assert known is not None, f"the head of a template does not name {role}"
        return known

    @property
    def other_networks(self) -> list[Compared]:
        """The experiments on other networks than the one that answers quote, the largest first."""
        networks = nearest_first(self.all_of("network"))
        return [known for known in networks if "reference" not in known.about.roles]

    def contrasts(self, parts: Iterable[Part]) -> pd.DataFrame:
        """Return contrasts of several experiments in one table."""
        tables = []
        for known, pairs, columns in parts:
            lines = known.contrasts_of(pairs)
            # Columns without a line are of objects, and would make the joined ones objects too.
            if len(lines):
                tables.append(lines.assign(**columns))
        if not tables:
            return pd.DataFrame(columns=CONTRAST)
        return pd.concat(tables, ignore_index=True)

    def elsewhere(
        self, experiments: Sequence[Compared], *pairs: tuple[Speaker, Speaker]
    ) -> list[dict[Hashable, Any]]:
        """Return contrasts on several networks, a line each.

        The network and its number of parameters stand in each line.
        """
        parts: list[Part] = []
        for known in experiments:
            columns = {"network": known.about.network, "num_parameters": known.num_parameters}
            parts.append((known, known.pairs(*pairs), columns))
        return self.contrasts(parts).to_dict("records")

    @cached_property
    def speed(self) -> SpeedStudy | None:
        """The study of step times; None where there is none.

        Raises:
            RecordError: a record is damaged.
        """
        for folder in self.folders:
            if folder.name == TIMINGS and (folder / STUDY).exists():
                return read_study(folder)
        return None

    @cached_property
    def scored(self) -> list[Timing]:
        """Sessions that timed exactly the settings that accuracy runs score."""
        paths: list[Path] = []
        for folder in self.folders:
            if folder.name.endswith(TIMINGS):
                paths += sorted(folder.glob("scored-*.json"))
        return [read_record(path, Timing) for path in paths]


def nearest_first(experiments: Iterable[Compared]) -> list[Compared]:
    """Sort experiments by how near their network is to what people train.

    The largest comes first, and the one that stands for none of these, the reference, last.
    """

    def place(known: Compared) -> tuple[bool, int]:
        return "reference" in known.about.roles, -known.num_parameters

    return sorted(experiments, key=place)


def evidence_of(results: Path | None) -> Evidence:
    """Return what there is to answer from.

    Args:
        results: folder of one's own records, or None for what ships alone.

    Raises:
        UsageError: there is no such folder. RecordError: a record of one's own is damaged.
    """
    if results is not None and not results.is_dir():
        raise UsageError(
            f"there is no folder {results}; give the folder of results, as --results results"
        )
    return Evidence(take(results and results.resolve()).folders)


def evidence_for(pages: Path, results: Path) -> Evidence:
    """Return what the pages in a folder are drawn from: what ships alone where the folder ships.

    Args:
        pages: the folder.
        results: folder of one's own records.

    Raises:
        UsageError, RecordError: as `evidence_of`.
    """
    return evidence_of(None if ships(pages) else results)
