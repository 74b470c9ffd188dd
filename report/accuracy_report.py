"""An accuracy experiment's report: its tables, its figures, and the sections that a template prints.

templates/accuracy.md.j2 has the captions. The title is a person's sentence where there is one (`findings.toml`).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from cser_bench.report.accuracy_figures import (
    drawn_methods,
    link_figure,
    loss_at_one_load,
    loss_figure,
    with_verdicts,
)
from cser_bench.report.contrasts_section import (
    ContrastsSection,
    contrasts_section,
    margin_of,
)
from cser_bench.report.efficiency_section import (
    EfficiencySection,
    curve_columns,
    efficiency_of,
    efficiency_section,
)
from cser_bench.report.findings import estimates_of, finding_of, findings
from cser_bench.report.frame import Frames
from cser_bench.report.hours import draw_hours, gpu_set_ups, hours_frame
from cser_bench.report.labels import with_short_labels
from cser_bench.report.provenance_section import ProvenanceSection, provenance_section
from cser_bench.report.ranking import Ranking, ranking_of
from cser_bench.report.regime import Regime, regime_of
from cser_bench.report.render import write_report
from cser_bench.report.sensitivity import assay_frame
from cser_bench.report.sizes import sizes_frame
from cser_bench.report.statistics import accuracy_frame, contrasts_frame, rates_frame
from cser_bench.report.tuning_section import TuningSection, tuning_frame, tuning_section
from cser_bench.report.which_method import which_method_from
from cser_bench.report.wording import Columns, gap_name, score_format, score_unit


@dataclass(frozen=True)
class AccuracyPage:
    """All that the template prints.

    Attributes:
        name, title: of the experiment. finding: a person's sentence; None where there is none that holds.
        use: a person's sentence on what to do. estimates: the gaps that the finding rests on.
        which_method: the page that joins all experiments, as a link where the records ship.
        note: what the first table, or that by size, needs said; None for none.
        num_planned, num_done, num_diverged: of runs. next_stage: what it adds and costs; None where none follows.
        gap_name, unit: of a drop. margin: with its unit; None where there is none.
        ranking, regime, contrasts, efficiency, tuning, provenance: the sections; None where there is nothing to say.
        curve_columns: of the baseline's lengths.
        sizes: drops by size and length; sizes_columns: of that table.
        figures: those that were drawn. load: what a link carries of the rows of the first, at most; None for any.
        hours: of training on GPUs by method. gpu_set_ups: on which. hours_columns: of that table.
        has_both_momenta: whether rows are M-CSER's and CSER's. has_adamw: whether CSER's local step is AdamW somewhere.
    """

    name: str
    title: str
    finding: str | None
    use: Markup | None
    estimates: list[str]
    which_method: Markup
    note: Markup | None
    num_planned: int
    num_done: int
    num_diverged: int
    next_stage: str | None
    gap_name: str
    unit: str
    margin: str | None
    ranking: Ranking
    regime: Regime
    contrasts: ContrastsSection | None
    efficiency: EfficiencySection | None
    curve_columns: Columns
    sizes: pd.DataFrame
    sizes_columns: Columns
    tuning: TuningSection | None
    provenance: ProvenanceSection
    figures: dict[str, Figure]
    load: float | None
    hours: pd.DataFrame
    hours_columns: Columns
    gpu_set_ups: list[str]
    has_both_momenta: bool
    has_adamw: bool


def build_report(
    frames: Frames, output: Path | None = None, with_pdf: bool = True
) -> Path:
    """Write the report of an experiment, or of a tuning.

    The same records give the same bytes of Markdown and CSV.

    Args:
        output: where to write; None is the experiment's folder.
        with_pdf: whether to set the PDF too.

    Returns:
        The path of report.md.

    Raises:
        OSError: the output cannot be written.
    """
    if frames.experiment.name in findings():
        # Those that ship; in anyone else's records a label is the user's own.
        frames = with_short_labels(frames)
    tables = tables_of(frames)
    page = page_of(frames, tables)
    # Not `asdict`, which would copy the frames and take sections apart.
    context = {field.name: getattr(page, field.name) for field in fields(page)}
    csv = tables | _told_apart(frames)
    if len(page.hours):
        csv["hours"] = page.hours
    return write_report(
        output or frames.folder,
        "report",
        "accuracy.md.j2",
        context,
        csv,
        page.figures,
        with_pdf,
    )


def tables_of(frames: Frames) -> dict[str, pd.DataFrame]:
    """Return every table of the report, whole and unrounded, by the name of its CSV file."""
    return {
        "accuracy": accuracy_frame(frames),
        "contrasts": contrasts_frame(frames),
        "efficiency": efficiency_of(frames),
        "lengths": assay_frame(frames),
        "rates": rates_frame(frames),
        "tuning_cost": tuning_frame(frames),
        "sizes": sizes_frame(frames),
    }


def page_of(frames: Frames, tables: dict[str, pd.DataFrame]) -> AccuracyPage:
    """Return all that the template prints of an experiment.

    Args:
        frames: with the labels that are printed.
        tables: of `tables_of`.
    """
    experiment = frames.experiment
    accuracy = tables["accuracy"]
    finding = use = note = None
    estimates = []
    written = finding_of(frames)
    if written is not None:
        finding = written.finding
        # Both may name an experiment as code.
        use = Markup(written.use)
        estimates = estimates_of(written, frames, accuracy)
        if written.note is not None:
            note = Markup(written.note)
    # Rows may share a run, which is one all the same.
    statuses = frames.runs.drop_duplicates("run_id")["status"]
    efficiency = efficiency_section(frames, accuracy, tables["efficiency"])
    hours = hours_frame(frames, accuracy)
    figures, load = _figures(frames, accuracy, hours)
    algorithms = set(frames.rows["algorithm"])
    return AccuracyPage(
        name=experiment.name,
        title=experiment.title,
        finding=finding,
        use=use,
        estimates=estimates,
        which_method=which_method_from(frames.folder),
        note=note,
        num_planned=len(statuses),
        num_done=int((statuses == "done").sum()),
        num_diverged=int((statuses == "diverged").sum()),
        next_stage=experiment.next_stage,
        gap_name=gap_name(frames.metric),
        unit=frames.metric.loss_unit,
        margin=margin_of(frames),
        ranking=ranking_of(frames, accuracy, tables["efficiency"]),
        regime=regime_of(frames),
        contrasts=contrasts_section(frames, tables["contrasts"]),
        efficiency=efficiency,
        curve_columns=curve_columns(frames, efficiency),
        sizes=tables["sizes"],
        sizes_columns=_sizes_columns(frames),
        tuning=tuning_section(frames, tables["rates"], tables["tuning_cost"]),
        provenance=provenance_section(frames),
        figures=figures,
        load=load,
        hours=hours,
        hours_columns=_hours_columns(frames),
        gpu_set_ups=gpu_set_ups(frames),
        has_both_momenta={"mcser", "cser"} <= algorithms,
        has_adamw=_has_adamw(frames),
    )


def _has_adamw(frames: Frames) -> bool:
    """Tell whether a row is CSER with AdamW, which a note says is not the paper's."""
    is_cser = frames.rows["algorithm"] == "cser"
    return bool((is_cser & (frames.rows["local_step"] == "adamw")).any())


def _told_apart(frames: Frames) -> dict[str, pd.DataFrame]:
    """Return the frames, with what an interruption changes beside the attempts alone.

    That is times, and bookkeeping's traffic. So a run that was interrupted and went on leaves the
    same bytes in all other files.
    """
    timed = []
    for name in frames.runs:
        # Columns of traffic are named by purpose and count, as "control.bits".
        group = str(name).split(".")[0]
        if group in ("wall_seconds", "control"):
            timed.append(name)
    runs = frames.runs.drop(columns=timed)
    times = frames.runs[["run_id", *timed]].drop_duplicates("run_id")
    attempts = frames.attempts.merge(times, on="run_id", how="left")
    scores = frames.scores.drop(columns="wall_seconds")
    return frames.tables | {"runs": runs, "scores": scores, "attempts": attempts}


def _figures(
    frames: Frames, accuracy: pd.DataFrame, hours: pd.DataFrame
) -> tuple[dict[str, Figure], float | None]:
    """Draw the figures that there are numbers for, and return the load of the first one's links."""
    experiment = frames.experiment
    margin = experiment.margin
    families = experiment.families
    unit = frames.metric.loss_unit
    name = gap_name(frames.metric)
    title = name[:1].upper() + name[1:]
    # At one load methods are set side by side; over loads each is a line of several rows.
    shown, load = loss_at_one_load(frames, accuracy)
    compared = with_verdicts(frames, accuracy)
    figures = {}
    if len(shown):
        figures["loss"] = loss_figure(
            shown, margin, f"{title} by method", families, unit, name
        )
    if len(drawn_methods(compared, families)):
        figures["links"] = link_figure(
            compared, margin, f"{title} by traffic", families, unit, name
        )
    if hours["speed_up"].notna().any():
        label = frames.metric.label
        figures["hours"] = draw_hours(
            hours, frames, f"{label} by speed-up".capitalize()
        )
    return figures, load


def _sizes_columns(frames: Frames) -> Columns:
    """Return the columns of the table of sizes and lengths, each with its head and format."""
    metric = frames.metric
    baseline = "baseline"
    if frames.experiment.baseline is not None:
        baseline = str(frames.row(frames.experiment.baseline)["label"])
    return {
        "label": ("method", "text"),
        "num_parameters": ("parameters", "count"),
        "num_steps": ("steps", "count"),
        "num_runs": ("seeds", "count"),
        "baseline": (f"{baseline}, {score_unit(metric)}", score_format(metric)),
        "drop": (f"{gap_name(metric)}, {metric.loss_unit} (95 % CI)", "text"),
    }


def _hours_columns(frames: Frames) -> Columns:
    """Return the columns of the table of hours."""
    return {
        "label": ("method", "text"),
        "ratio": ("compression ratio", "amount"),
        "learning_rate": ("learning rate", "short"),
        "num_runs": ("runs", "count"),
        "hours": ("hours", "amount"),
        "speed_up": ("speed-up", "amount"),
        "mean": (frames.metric.score_label, score_format(frames.metric)),
    }
