"""An accuracy experiment's report: the pages' tables and sentences' numbers, which
templates/accuracy.md.j2 puts in."""

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from cser_bench.report.accuracy_figures import (
    drawn_methods,
    link_figure,
    loss_at_one_load,
    loss_figure,
)
from cser_bench.report.declared import are_without_verdict, seen_when_declared
from cser_bench.report.frame import Frames, sharing_baseline
from cser_bench.report.regime import (
    assay_frame,
    lost_frame,
    needs_frame,
    noise_share,
    predictors_frame,
)
from cser_bench.report.render import write_report
from cser_bench.report.statistics import (
    BETTER_BY_MARGIN,
    VERDICTS,
    WORSE_BY_MARGIN,
    accuracy_frame,
    contrasts_frame,
    rates_frame,
    seed_correlation,
)
from cser_bench.report.wording import FORMATS, amount, counted, listed, points, short

MOST_ROWS = 62
"""A table of more rows would not fit on a page: it then has those of the main ratio alone."""

_MOST_STATES = 6
"""States of the code, or machines, that are named on a page."""

SAME_LOAD = 1.5
"""Rows whose links carry numbers of models nearer than this factor count as one load."""

_JOINED = {"non-inferiority": "", "equivalence": " and ", "superiority": " against "}


def build_report(frames: Frames, output: Path | None = None, with_pdf: bool = True) -> Path:
    """Write the report of an experiment, or of a tuning; the same records give the same bytes of
    Markdown and CSV.

    Args:
        output: where to write; None is the experiment's folder.
        with_pdf: whether to set the PDF too.

    Returns:
        The path of report.md.

    Raises:
        OSError: the output cannot be written.
    """
    tables = tables_of(frames)
    figures, captions = _figures(frames, tables["accuracy"])
    context = _context(frames, tables) | {"captions": captions, "figures": figures}
    csv = tables | _told_apart(frames)
    return write_report(
        output or frames.folder, "report", "accuracy.md.j2", context, csv, figures, with_pdf
    )


def tables_of(frames: Frames) -> dict[str, pd.DataFrame]:
    """Every table of the report, whole and unrounded, by the name of its CSV file."""
    lost = lost_frame(frames)
    return {
        "accuracy": accuracy_frame(frames),
        "contrasts": contrasts_frame(frames),
        "needs": needs_frame(frames),
        "lengths": assay_frame(frames),
        "lost": lost,
        "predictors": predictors_frame(lost),
        "rates": rates_frame(frames),
        "tuning_cost": tuning_frame(frames),
    }


def _told_apart(frames: Frames) -> dict[str, pd.DataFrame]:
    """The frames, with what an interruption changes beside the attempts alone: times, and
    bookkeeping's traffic."""
    timed = [name for name in frames.runs if str(name).split(".")[0] in ("wall_seconds", "control")]
    runs = frames.runs.drop(columns=timed)
    attempts = frames.attempts.merge(
        frames.runs[["run_id", *timed]].drop_duplicates("run_id"), on="run_id", how="left"
    )
    scores = frames.scores.drop(columns="wall_seconds")
    return frames.tables | {"runs": runs, "scores": scores, "attempts": attempts}


def _figures(frames: Frames, accuracy: pd.DataFrame) -> tuple[dict[str, Figure], dict[str, str]]:
    """The figures that there are numbers for, and what is said under them."""
    margin, figures, captions = frames.experiment.margin, {}, {}
    families = frames.experiment.families
    shown, captions["loss"], load = loss_at_one_load(frames, accuracy)
    captions |= {"load": load} if load else {}
    if len(shown):
        figures["loss"] = loss_figure(shown, margin, captions["loss"], families)
    own = accuracy[accuracy["is_own"] & (accuracy["row"] != frames.experiment.baseline)]
    if len(drawn_methods(own, families)):
        captions["links"] = "Differences over what a link carries"
        figures["links"] = link_figure(own, margin, captions["links"], families)
    return figures, captions


def _context(frames: Frames, tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    experiment, accuracy, rows = frames.experiment, tables["accuracy"], frames.rows
    shown, columns = _accuracy_table(frames, accuracy)
    needs, lost, contrasts = tables["needs"], tables["lost"], tables["contrasts"]
    verdicts = contrasts["verdict"].value_counts()
    return {
        **tables,
        "experiment": experiment,
        "frames": frames,
        "status": {"done": 0, "diverged": 0, "planned": len(frames.runs)}
        | frames.runs["status"].value_counts().to_dict(),
        "heading": frames.metric.label[:1].upper() + frames.metric.label[1:],
        "again": _asks_again(frames),
        "is_quoted": frames.has_role("reference"),
        "margin": counted(round(100 * (experiment.margin or 0.0), 6), "point"),
        "baseline": frames.by_row.loc[experiment.baseline, "label"]
        if experiment.baseline
        else "the baseline",
        "has_difference": bool(accuracy["difference"].notna().any()),
        "assay": {"reason": "it has no rows"}
        | next(iter(tables["lengths"].to_dict("records")), {}),
        "accuracy": shown,
        "columns": columns,
        "written": _written(frames),
        "left_out": 0 if frames.is_tuning else int(accuracy["is_own"].sum()) - len(shown),
        "has_links": bool(accuracy["models_sent"].notna().any()),
        "mcser": {"mcser", "cser"} <= set(rows["algorithm"]),
        "ours": bool(((rows["algorithm"] == "cser") & (rows["local_step"] == "adamw")).any()),
        "num_tests": _num_tests(frames),
        "correlation": seed_correlation(frames),
        "sharing": [f"`{name}`" for name in sharing_baseline(frames)],
        "num_verdicts": {word: int(verdicts.get(word, 0)) for word in VERDICTS},
        "verdicts": _verdict_table(frames, contrasts),
        "asked_by_load": _asked_by_load(accuracy, contrasts),
        "compared": _losses_of_compared(frames, accuracy, contrasts),
        "num_seen": Counter(seen and seen.num_rows for seen in seen_when_declared(frames)),
        "num_kept": sum(contrast.is_verdict_kept for contrast in frames.contrasts),
        "needs": needs[needs["num_tried"] > 1].sort_values(["shown_less", "shown_more"])
        if len(needs)
        else needs,
        "noise": noise_share(lost) if len(lost) else math.nan,
        "rates": _rate_table(frames, tables["rates"]),
        **_provenance(frames),
    }


def _asks_again(frames: Frames) -> str | None:
    """Return the name of the experiment that asks the same questions as this one; None for none."""
    evidence = frames.experiment.evidence
    if evidence is None or not frames.contrasts:
        return None
    return evidence.asks_again


def _accuracy_table(
    frames: Frames, accuracy: pd.DataFrame
) -> tuple[pd.DataFrame, dict[str, tuple[str, str]]]:
    experiment, own = frames.experiment, accuracy[accuracy["is_own"]]
    if frames.is_tuning:
        tuned = own["row"].map(frames.by_row["tunes"])
        own = own.loc[own["mean"].fillna(-math.inf).groupby(tuned, sort=False).idxmax()]
    if len(own) > MOST_ROWS:
        own = own[own["ratio"].isin([1.0, experiment.main_ratio, math.inf]) | own["is_bound"]]
    own = own.assign(order=own["row"].map({experiment.baseline: 0, experiment.floor: 2}).fillna(1))
    own = own.sort_values(
        ["order", "ratio", "difference"], ascending=[True, True, False], kind="stable"
    )
    own["runs"] = [_runs(line) for line in own.to_dict("records")]
    unit = "%" if frames.metric.unit == "percent" else frames.metric.unit
    columns = {
        "label": ("method", "text"),
        "ratio": ("ratio", "amount"),
        "learning_rate": ("rate", "short"),
    }
    columns |= {"models_sent": ("models", "amount"), "link_models": ("link", "amount")}
    columns |= {"runs": ("runs", "count" if own["runs"].str.isdigit().all() else "text")}
    columns |= {"mean": (f"{frames.metric.score_label}, {unit}", _written(frames))}
    columns |= {"difference": ("difference", "points")}
    columns |= {"difference_low, difference_high": ("95 % interval", "interval")}
    empty = {name for name in ("models_sent", "link_models") if own[name].isna().all()}
    return own, {name: said for name, said in columns.items() if name not in empty}


def _num_tests(frames: Frames) -> int:
    """One-sided tests of the contrasts that may have a verdict."""
    contrasts = zip(frames.contrasts, are_without_verdict(frames), strict=True)
    return sum(contrast.num_tests for contrast, is_late in contrasts if not is_late)


def _written(frames: Frames) -> str:
    """The format of a score."""
    return "percent" if frames.metric.is_share else "loss"


def _runs(line: Mapping[Any, Any]) -> str:
    done, planned, diverged = line["num_runs"], line["num_planned"], line["num_diverged"]
    said = str(done) if done == planned else f"{done} of {planned}"
    return f"{said}, {diverged} diverged" if diverged else said


def _verdict_table(frames: Frames, contrasts: pd.DataFrame) -> pd.DataFrame:
    """One line a verdict: the contrasts that have it, each with its estimate."""
    found: dict[str, list[str]] = {word: [] for word in VERDICTS}
    for line in contrasts.to_dict("records"):
        joined = (
            " less "
            if line["verdict"] in (BETTER_BY_MARGIN, WORSE_BY_MARGIN)
            else _JOINED[line["kind"]]
        )
        said = _name(frames, line["row"]) + (joined and joined + _name(frames, line["reference"]))
        known = "" if math.isnan(line["estimate"]) else f" ({points(line['estimate'])})"
        found[line["verdict"]].append(said + known)
    lines = [(word, "; ".join(which)) for word, which in found.items() if which]
    return pd.DataFrame(lines, columns=["verdict", "which"])


def _asked_by_load(accuracy: pd.DataFrame, contrasts: pd.DataFrame) -> list[dict[str, Any]]:
    """Count, of each load of a link, the methods asked about and what was shown of them.

    A loss at one load says nothing about another, so an experiment at several counts them apart.
    """
    asked = contrasts[contrasts["kind"] == "non-inferiority"]
    link_models = accuracy.loc[accuracy["is_own"]].set_index("row")["link_models"]
    asked = asked.assign(load=asked["row"].map(link_models)).sort_values("load")
    begins_load = asked["load"] > SAME_LOAD * asked["load"].shift()
    groups = []
    for _, group in asked.groupby(begins_load.cumsum()):
        verdicts = group["verdict"].value_counts()
        counts = {
            "lowest": group["load"].min(),
            "highest": group["load"].max(),
            "num_asked": len(group),
            "num_less": int(verdicts.get("loses less than the margin", 0)),
            "num_more": int(verdicts.get("loses more than the margin", 0)),
        }
        groups.append(counts)
    return groups


def _losses_of_compared(
    frames: Frames, accuracy: pd.DataFrame, contrasts: pd.DataFrame
) -> dict[str, Any]:
    """Find what the methods that were compared with each other lose against everything sent.

    A method that is better than another may still lose more than a worker alone.
    """
    rows = set(contrasts["row"]) | set(contrasts["reference"])
    own = accuracy[accuracy["is_own"] & accuracy["difference"].notna()].set_index("row")
    compared = own[own.index.isin(rows)]
    floor = frames.experiment.floor
    if compared.empty or floor is None or floor not in own.index:
        return {}
    alone = own.loc[floor, "difference"]
    below = compared[(compared["difference"] < alone) & (compared.index != floor)]
    return {
        "num": len(compared),
        "least": compared["difference"].max(),
        "most": compared["difference"].min(),
        "alone": alone,
        "below_alone": below["label"].tolist(),
    }


def _name(frames: Frames, row: str) -> str:
    line, rows = frames.row(row), frames.rows
    is_only = (
        rows.loc[(rows["label"] == line["label"]) & rows["base"].isna(), "ratio"].nunique() < 2
    )
    is_main = frames.experiment.main_ratio is not None and line["ratio"] in (
        1.0,
        frames.experiment.main_ratio,
    )
    return (
        str(line["label"])
        if is_only or is_main
        else f"{line['label']} at ratio {amount(line['ratio'])}"
    )


def _rate_table(frames: Frames, rates: pd.DataFrame) -> pd.DataFrame:
    """One line a row: the chosen rate with its score, all scores by rate, and how much better the
    best rate is."""
    kind = "test" if (rates["kind"] == "test").any() else "held out"
    lines = []
    for row, group in rates[rates["kind"] == kind].groupby("row", sort=False):
        chosen = group[group["is_chosen"]]
        rate, score = (
            chosen[["learning_rate", "score"]].iloc[0] if len(chosen) else (math.nan, math.nan)
        )
        pairs = zip(group["score"], group["learning_rate"], strict=True)
        said = ", ".join(
            f"{FORMATS[_written(frames)](score)} at {short(rate)}" for score, rate in pairs
        )
        better = float(group["score"].max()) - score
        lines.append(
            (_name(frames, str(row)), rate, score, said, better, kind, group["num_runs"].max())
        )
    return pd.DataFrame(
        lines, columns=["label", "rate", "score", "said", "better", "kind", "num_runs"]
    )


def _provenance(frames: Frames) -> dict[str, Any]:
    config, baseline = (
        frames.experiment.config | {"seeds": frames.experiment.seeds},
        frames.experiment.baseline,
    )
    own = sorted(frames.runs.loc[frames.runs["row"] == baseline, "seed"].unique().tolist())
    config |= (
        {f"seeds of {_name(frames, baseline)}": own}
        if baseline and own != frames.experiment.seeds
        else {}
    )
    names = {"wire": "communication dtype"}
    settings = [
        f"{names.get(key, key).replace('_', ' ')}: {_value(value)}"
        for key, value in config.items()
        if _value(value)
    ]
    attempts = frames.attempts
    named = attempts.assign(
        commit=[str(commit)[:12] if commit else "none" for commit in attempts["git_commit"]],
        changed=attempts["git_diff_sha256"].notna().map({True: "yes", False: "no"}),
        cpu=[
            f"{cpu}, {num} CPUs"
            for cpu, num in zip(attempts["cpu"], attempts["num_cpus"], strict=True)
        ],
    )
    groups = named.groupby(["commit", "changed", "device", "cpu"], dropna=False)["run_id"].nunique()
    states = (
        groups.rename("num_runs")
        .reset_index()
        .sort_values("num_runs", ascending=False, kind="stable")
    )
    without = (
        frames.runs.loc[frames.runs["status"].isin(("failed", "missing")), "status"]
        .value_counts()
        .sort_index()
    )
    return {
        "settings": "; ".join(settings),
        "failures": listed([f"{number} {status}" for status, number in without.items()]),
        "attempts": states.iloc[:_MOST_STATES],
        "more_states": max(0, len(states) - _MOST_STATES),
        "num_attempts": len(attempts),
        "num_changed": int(attempts["git_diff_sha256"].notna().sum()),
        "hours": float(
            frames.runs.drop_duplicates("run_id")["wall_seconds"].fillna(0).astype(float).sum()
        )
        / 3600,
        "packages": attempts["packages"].value_counts().index[0] if len(attempts) else "",
    }


def _value(value: Any) -> str:
    """A setting as text: of a table its entries, without those that are nothing."""
    if isinstance(value, Mapping):
        told = ((key, each) for key, each in value.items() if each not in (0, [], None, {}, False))
        return ", ".join(f"{key.replace('_', ' ')} {_value(each)}" for key, each in told)
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def tuning_frame(frames: Frames) -> pd.DataFrame:
    """What the search cost by method: label, num_rows, num_trials, num_runs, num_epochs, rates,
    num_at_end."""
    named = frames.experiment.tuning
    choices, selected = (named.choices, named.selected) if named else ({}, {})
    tried = (
        frames.tuning[frames.tuning["row"].isin(frames.by_row.index)] if selected else frames.tuning
    )
    lines = []
    for label, group in tried.groupby("label", sort=False):
        mine = list(group["row"].unique())
        rates = sorted({selected[row] for row in mine if row in selected})
        at_end = sum(choices[row].at_end for row in mine if row in choices)
        epochs = group.drop_duplicates("run_id")["num_epochs"].sum()
        said = ", ".join(short(rate) for rate in rates) or None
        lines.append(
            (
                label,
                len(mine),
                group["trial"].nunique(),
                group["run_id"].nunique(),
                epochs,
                said,
                at_end,
            )
        )
    columns = ["label", "num_rows", "num_trials", "num_runs", "num_epochs", "rates", "num_at_end"]
    return pd.DataFrame(lines, columns=columns)
