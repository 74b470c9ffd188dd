"""An accuracy experiment's report: the pages' tables and sentences' numbers, which templates/accuracy.md.j2 puts in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from report.accuracy_figures import at_link_load, drawn_methods, link_figure, loss_figure
from report.accuracy_tables import main_load, tables_of
from report.frame import Frames, read_frames
from report.regime import noise_share
from report.render import write_report
from report.statistics import pool_of
from report.wording import amount, counted, listed, percent, points, short

MOST_ROWS = 62
"""A table of more rows would not fit on a page: it then has those of the main ratio alone."""

_MOST_STATES = 6
"""States of the code, or machines, that are named on a page."""

_WORDS = ["better", "worse", "loses less than the margin", "loses more than the margin", "equal within the margin"]
_WORDS += ["not told apart", "diverged", "not enough runs"]


def build_report(folder: Path, tuning: Path | None = None, output: Path | None = None, with_pdf: bool = True) -> Path:
    """Write the report of an experiment; the same records give the same bytes of Markdown, CSV and pictures.

    Args:
        folder: of the experiment, or of a tuning.
        tuning: folder of its tuning experiment; None takes the one that the experiment names, if it is there.
        output: where to write; None is the experiment's folder.
        with_pdf: whether to set the PDF too.

    Returns:
        The path of report.md.

    Raises:
        UsageError: there is no such folder or no experiment in it.
        RecordError: a record is damaged; the message names the file.
        OSError: the output cannot be written.
    """
    frames = read_frames(folder, tuning)
    tables = tables_of(frames)
    figures, captions = _figures(frames, tables["accuracy"])
    context = _context(frames, tables) | captions
    csv = tables | _told_apart(frames)
    return write_report(output or folder, "report", "accuracy.md.j2", context, csv, figures, with_pdf)


def _told_apart(frames: Frames) -> dict[str, pd.DataFrame]:
    """The frames, with what an interruption changes beside the attempts alone: times, and bookkeeping's traffic."""
    timed = [name for name in frames.runs if str(name).split(".")[0] in ("wall_seconds", "control")]
    runs = frames.runs.drop(columns=timed)
    attempts = frames.attempts.merge(frames.runs[["run_id", *timed]].drop_duplicates("run_id"), on="run_id", how="left")
    scores = frames.scores.drop(columns="wall_seconds")
    return frames.tables | {"runs": runs, "scores": scores, "attempts": attempts}


def write_frames(folder: Path, tuning: Path | None = None, output: Path | None = None) -> Path:
    """Write an experiment's frames as frames/*.csv, for whoever starts from there. Arguments and errors as above."""
    target = (output or folder) / "frames"
    target.mkdir(parents=True, exist_ok=True)
    for name, frame in read_frames(folder, tuning).tables.items():
        frame.to_csv(target / f"{name}.csv", index=False, lineterminator="\n")
    return target


def _figures(frames: Frames, accuracy: pd.DataFrame) -> tuple[dict[str, Figure], dict[str, Any]]:
    """The figures, and whether they are there and what is said under them."""
    margin, load = frames.experiment.margin, main_load(frames)
    own = accuracy[accuracy["is_own"] & (accuracy["row"] != frames.experiment.baseline)]
    own = own[own["difference"].notna()]
    shown = at_link_load(own, load)
    load = load if len(shown) < len(own) else math.nan
    shown = shown if len(shown) <= MOST_ROWS // 2 else shown.iloc[: MOST_ROWS // 2]
    figures, said = {}, {"shown_loss": False, "shown_links": False, "loss_caption": "", "links_caption": ""}
    if len(shown):
        title = _finding(frames, shown, load)
        figures["loss"] = loss_figure(shown, margin, title)
        said |= {"shown_loss": True, "loss_caption": _caption(title, load)}
    linked = drawn_methods(own)
    if (linked.groupby("label")["link_models"].nunique() > 1).sum() > 1:
        title = "Loss against what a link carries"
        figures["links"] = link_figure(own, margin, title)
        said |= {
            "shown_links": True,
            "links_caption": f"{title}. Green: the margin. Means; intervals are in the table.",
        }
    return figures, said


def _finding(frames: Frames, shown: pd.DataFrame, load: float) -> str:
    judged = shown[~shown["is_bound"]]
    margin = frames.experiment.margin
    if margin is None:
        return "Points lost against all sent"
    within = int((judged["difference"] > -margin).sum())
    at = f"At a link load of {amount(load)} models, " if not math.isnan(load) else ""
    text = f"{within} of {counted(len(judged), 'method')} lose less than {100 * margin:g} points in the mean"
    return f"{at}{text}" if at else text[:1].upper() + text[1:]


def _caption(title: str, load: float) -> str:
    at = " Of each method the row that loads a link most within that; in brackets its load." if load == load else ""
    return f"{title}.{at} Arrows: beyond the axis. Intervals are each row's own; verdicts are in the table above alone."


def _context(frames: Frames, tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    experiment, accuracy = frames.experiment, tables["accuracy"]
    lengths = tables["lengths"]
    assay = lengths.iloc[0].to_dict() if len(lengths) else {"reason": "it has no rows", "gap": math.nan}
    shown, columns = _accuracy_table(frames, accuracy)
    return {
        "experiment": experiment,
        "frames": frames,
        "progress": _progress(frames),
        "heading": frames.metric.label[:1].upper() + frames.metric.label[1:],
        "margin": f"{100 * experiment.margin:g}" if experiment.margin is not None else "0",
        "baseline": frames.by_row.loc[experiment.baseline, "label"] if experiment.baseline else "the baseline",
        "is_tuning": _is_tuning(frames),
        "has_difference": bool(accuracy["difference"].notna().any()),
        "assay": {key: None if value is None or value != value else value for key, value in assay.items()},
        "regime": _regime(frames),
        "accuracy": shown,
        "columns": columns,
        "left_out": 0 if _is_tuning(frames) else int(accuracy["is_own"].sum()) - len(shown),
        "has_links": bool(accuracy["models_sent"].notna().any()),
        "mcser": bool((frames.rows["algorithm"] == "mcser").any() and (frames.rows["algorithm"] == "cser").any()),
        "ours": bool(((frames.rows["algorithm"] == "cser") & (frames.rows["local_step"] == "adamw")).any()),
        "needs": _needs_table(tables["needs"]),
        "experiment_steps": int(accuracy["num_steps"].max()),
        "predictors": tables["predictors"],
        "noise": noise_share(tables["lost"]) if len(tables["lost"]) else math.nan,
        "num_predicted": tables["lost"]["label"].nunique(),
        **_contrast_tables(frames, tables["contrasts"]),
        **_rate_tables(frames, tables["rates"]),
        **_tuning_tables(frames, tables["tuning_cost"]),
        **_provenance(frames),
    }


def _is_tuning(frames: Frames) -> bool:
    """Whether the experiment is a search for settings and rates: then of every tuned row the best trial is shown."""
    return bool(frames.rows["tunes"].notna().any())


def _progress(frames: Frames) -> str:
    status = frames.runs["status"].value_counts()
    planned, done, diverged = len(frames.runs), int(status.get("done", 0)), int(status.get("diverged", 0))
    ended = (
        f"all {planned} runs are done"
        if done + diverged == planned
        else f"{done + diverged} of {planned} runs are done"
    )
    return f"{ended}, {diverged or 'none'} diverged"


def _regime(frames: Frames) -> str:
    config, rows = frames.experiment.config, frames.rows
    steps, parameters = int(rows["num_steps"].max()), int(rows["num_parameters"].max())
    workers = config.get("num_workers")
    said = [f"{frames.experiment.task}, {frames.experiment.model} of {parameters:,} parameters", f"{steps:,} steps"]
    said += [f"{workers} workers"] if workers else []
    return ", ".join(said).replace("_", " ")


def _accuracy_table(frames: Frames, accuracy: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, tuple[str, str]]]:
    own = accuracy[accuracy["is_own"]].copy()
    if _is_tuning(frames):
        tuned = own["row"].map(frames.by_row["tunes"])
        own = own.loc[own["mean"].fillna(-math.inf).groupby(tuned, sort=False).idxmax()]
    if len(own) > MOST_ROWS:
        own = own[own["ratio"].isin([1.0, frames.experiment.main_ratio, math.inf]) | own["is_bound"]]
    own["shown_ratio"] = own["ratio"].where(np.isfinite(own["ratio"]), None)
    order = own["row"].map({frames.experiment.baseline: 0, frames.experiment.floor: 2}).fillna(1)
    own = own.assign(order=order).sort_values(
        ["order", "ratio", "difference"], ascending=[True, True, False], kind="stable"
    )
    own["runs"] = [_runs(line) for line in own.to_dict("records")]
    own["interval"] = [
        _interval(low, high) for low, high in zip(own["difference_low"], own["difference_high"], strict=True)
    ]
    columns = {"label": ("method", "text"), "shown_ratio": ("ratio", "amount")}
    columns |= {"learning_rate": ("learning rate", "short")} if _is_tuning(frames) else {}
    if own["models_sent"].notna().any():
        columns |= {"models_sent": ("models", "amount"), "link_models": ("link", "amount")}
    unit = "%" if frames.metric.unit == "percent" else frames.metric.unit
    is_plain = own["runs"].str.isdigit().all()
    columns |= {
        "runs": ("runs", "number" if is_plain else "text"),
        "mean": (f"{frames.metric.score_label}, {unit}", "percent"),
    }
    return own, columns | {"difference": ("difference", "points"), "interval": ("95 % interval", "text")}


def _runs(line: Mapping[Any, Any]) -> str:
    done, planned, diverged = line["num_runs"], line["num_planned"], line["num_diverged"]
    said = str(done) if done == planned else f"{done} of {planned}"
    return f"{said}, {diverged} diverged" if diverged else said


def _interval(low: float, high: float) -> str | None:
    return None if math.isnan(low) else f"{points(low)} to {points(high)}"


def _needs_table(needs: pd.DataFrame) -> pd.DataFrame:
    if needs.empty or not (needs["num_tried"] > 1).any():
        return pd.DataFrame()
    ends = zip(needs["fewest_tried"], needs["most_tried"], strict=True)
    tried = [amount(least) if least == most else f"{amount(least)} to {amount(most)}" for least, most in ends]
    return needs.assign(tried=tried).sort_values(["shown_less", "shown_more"], kind="stable")


def _contrast_tables(frames: Frames, contrasts: pd.DataFrame) -> dict[str, Any]:
    ends = zip(contrasts["low"], contrasts["high"], strict=True)
    shown = contrasts.assign(interval=pd.Series([_interval(low, high) for low, high in ends], dtype=object))
    lines = []
    for word in _WORDS:
        which = [_said(frames, line) for line in contrasts[contrasts["verdict"] == word].to_dict("records")]
        if which:
            lines.append((word, "; ".join(which)))
    asked = contrasts[contrasts["kind"] == "non-inferiority"]
    counts = [int((asked["verdict"] == f"loses {way} than the margin").sum()) for way in ("less", "more")]
    margin = f"{100 * frames.experiment.margin:g}" if frames.experiment.margin is not None else "0"
    answer = (
        f"Of {counted(len(asked), 'method')} asked about, {counts[0] or 'none'} {'is' if counts[0] < 2 else 'are'} "
        f"shown to lose less than {margin} points, and {counts[1] or 'none'} to lose more."
    )
    if asked.empty:
        shown_at_all = (~contrasts["verdict"].isin(_WORDS[-3:])).sum()
        answer = f"Of {counted(len(contrasts), 'contrast')} declared, {shown_at_all or 'none'} is shown."
    verdicts = pd.DataFrame(lines, columns=["verdict", "which"])
    return {"contrasts": shown, "verdicts": verdicts, "answer": answer, "pool": pool_of(frames)}


def _said(frames: Frames, line: Mapping[Any, Any]) -> str:
    label, reference = (_name(frames, line[key]) for key in ("row", "reference"))
    estimate = f" ({points(line['estimate'])})" if line["estimate"] == line["estimate"] else ""
    joint = {"non-inferiority": "", "equivalence": f" and {reference}", "superiority": f" against {reference}"}
    return f"{label}{joint[line['kind']]}{estimate}"


def _name(frames: Frames, row: str) -> str:
    line = frames.row(row)
    main, rows = frames.experiment.main_ratio, frames.rows
    is_only = rows.loc[(rows["label"] == line["label"]) & rows["base"].isna(), "ratio"].nunique() < 2
    is_main = main is not None and line["ratio"] in (1.0, main)
    return str(line["label"]) if is_only or is_main else f"{line['label']} at ratio {amount(line['ratio'])}"


def _rate_tables(frames: Frames, rates: pd.DataFrame) -> dict[str, Any]:
    """One line a method, a column a rate: each score, the chosen rate's in front."""
    kind = "test" if (rates["kind"] == "test").any() else "held out"
    mine = rates[rates["kind"] == kind]
    if mine.empty:
        return {"rates": pd.DataFrame(), "rate_columns": {}, "rates_note": ""}
    lines = []
    for row, group in mine.groupby("row", sort=False):
        chosen = group[group["is_chosen"]]
        rate = float(chosen["learning_rate"].iloc[0]) if len(chosen) else math.nan
        ordered = group.sort_values("learning_rate")
        said = ", ".join(
            f"{percent(s)} at {short(r)}" for s, r in zip(ordered["score"], ordered["learning_rate"], strict=True)
        )
        score = float(chosen["score"].iloc[0]) if len(chosen) else math.nan
        lines.append((_name(frames, str(row)), rate, score, said, float(ordered["score"].max()) - score))
    num_runs = int(mine["num_runs"].max())
    what = f"Test scores at the rates beside the chosen one, {counted(num_runs, 'seed')} each."
    if kind == "held out":
        what = "Scores on held-out training samples in the tuning, which ran at full length."
    columns = {"label": ("method", "text"), "rate": ("chosen rate", "short"), "score": ("score", "percent")}
    columns |= {"said": ("by learning rate", "text"), "better": ("best less chosen", "points")}
    return {"rates": pd.DataFrame(lines, columns=list(columns)), "rate_columns": columns, "rates_note": what}


def _tuning_tables(frames: Frames, cost: pd.DataFrame) -> dict[str, Any]:
    if cost.empty:
        return {"tuning": cost, "tuning_note": ""}
    named, epochs = frames.experiment.tuning, int(frames.tuning["num_epochs"].max())
    length = int(frames.rows["num_epochs"].max())
    seeds = listed([str(seed) for seed in sorted(frames.tuning["seed"].unique())])
    where = f"of experiment `{named.experiment}`, " if named else ""
    note = f"Trials {where}{epochs} of {length} epochs long, at seeds {seeds}. A trial is a pair of settings and rate."
    return {"tuning": cost, "tuning_note": note}


def _provenance(frames: Frames) -> dict[str, Any]:
    config = frames.experiment.config | {"seeds": frames.experiment.seeds}
    settings = [f"{key.replace('_', ' ')}: {_value(value)}" for key, value in config.items() if _value(value)]
    attempts = frames.attempts
    states = pd.DataFrame(columns=["commit", "changed", "device", "cpu", "num_runs"])
    packages = ""
    if len(attempts):
        named = attempts.assign(
            commit=[str(commit)[:12] if commit else "none" for commit in attempts["git_commit"]],
            changed=["yes" if digest else "no" for digest in attempts["git_diff_sha256"]],
            cpu=[f"{cpu}, {num} CPUs" for cpu, num in zip(attempts["cpu"], attempts["num_cpus"], strict=True)],
        )
        groups = named.groupby(["commit", "changed", "device", "cpu"], dropna=False)["run_id"].nunique()
        states = groups.rename("num_runs").reset_index().sort_values("num_runs", ascending=False, kind="stable")
        packages = attempts["packages"].value_counts().index[0]
    failed = frames.runs[frames.runs["status"].isin(("failed", "missing"))]["status"].value_counts().sort_index()
    return {
        "settings": "; ".join(settings),
        "failures": listed([f"{number} {status}" for status, number in failed.items()]),
        "attempts": states.iloc[:_MOST_STATES],
        "more_states": max(0, len(states) - _MOST_STATES),
        "num_attempts": len(attempts),
        "hours": float(frames.runs.drop_duplicates("run_id")["wall_seconds"].fillna(0).astype(float).sum()) / 3600,
        "packages": packages,
    }


def _value(value: Any) -> str:
    """A setting as text: of a table its entries, without those that are nothing."""
    if isinstance(value, Mapping):
        return ", ".join(
            f"{key.replace('_', ' ')} {_value(each)}"
            for key, each in value.items()
            if each not in (0, [], None, {}, False)
        )
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
