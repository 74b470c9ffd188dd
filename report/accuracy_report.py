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

_JOINED = {
    "non-inferiority": "",
    "equivalence": " and ",
    "superiority": " against ",
}


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
    context = _context(frames, tables) | {
        "captions": captions,
        "figures": figures,
    }
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
    return frames.tables | {
        "runs": runs,
        "scores": scores,
        "attempts": attempts,
    }


def _figures(frames: Frames, accuracy: pd.DataFrame) -> tuple[dict[str, Figure], dict[str, str]]:
    """The figures that there are numbers for, and what is said under them."""
    margin = frames.experiment.margin
    families = frames.experiment.families
    shown, title, load = loss_at_one_load(frames, accuracy)
    figures = {}
    captions = {"loss": title}
    if load:
        captions["load"] = load
    if len(shown):
        figures["loss"] = loss_figure(
            shown,
            margin,
            captions["loss"],
            families,
        )
    own = accuracy[accuracy["is_own"] & (accuracy["row"] != frames.experiment.baseline)]
    if len(drawn_methods(own, families)):
        captions["links"] = "Differences over what a link carries"
        figures["links"] = link_figure(
            own,
            margin,
            captions["links"],
            families,
        )
    return figures, captions


def _context(frames: Frames, tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    experiment = frames.experiment
    rows = frames.rows
    accuracy = tables["accuracy"]
    contrasts = tables["contrasts"]
    shown = _shown_rows(frames, accuracy)
    lengths = tables["lengths"].to_dict("records")
    statuses = {
        "done": 0,
        "diverged": 0,
        "planned": len(frames.runs),
    }
    verdicts = contrasts["verdict"].value_counts()
    return {
        **tables,
        "experiment": experiment,
        "frames": frames,
        "status": statuses | frames.runs["status"].value_counts().to_dict(),
        "heading": frames.metric.label[:1].upper() + frames.metric.label[1:],
        "again": _asks_again(frames),
        "is_quoted": frames.has_role("reference"),
        "margin": counted(round(100 * (experiment.margin or 0.0), 6), "point"),
        "baseline": _baseline_label(frames),
        "has_difference": bool(accuracy["difference"].notna().any()),
        "assay": lengths[0] if lengths else {"reason": "it has no rows"},
        "accuracy": shown,
        "columns": _columns(frames, shown),
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
        "needs": _needs_table(tables["needs"]),
        "noise": noise_share(tables["lost"]),
        "rates": _rate_table(frames, tables["rates"]),
        **_provenance(frames),
    }


def _asks_again(frames: Frames) -> str | None:
    """Return the name of the experiment that asks the same questions as this one; None for none."""
    evidence = frames.experiment.evidence
    if evidence is None or not frames.contrasts:
        return None
    return evidence.asks_again


def _baseline_label(frames: Frames) -> str:
    if frames.experiment.baseline is None:
        return "the baseline"
    return str(frames.row(frames.experiment.baseline)["label"])


def _needs_table(needs: pd.DataFrame) -> pd.DataFrame:
    """What methods need, of those tried at more than one ratio."""
    if needs.empty:
        return needs
    return needs[needs["num_tried"] > 1].sort_values(["shown_less", "shown_more"])


def _shown_rows(frames: Frames, accuracy: pd.DataFrame) -> pd.DataFrame:
    """The rows that the page shows: the baseline first, a worker alone last, others by ratio."""
    experiment = frames.experiment
    rows = accuracy[accuracy["is_own"]]
    if frames.is_tuning:
        tuned = rows["row"].map(frames.by_row["tunes"])
        rows = rows.loc[rows["mean"].fillna(-math.inf).groupby(tuned, sort=False).idxmax()]
    if len(rows) > MOST_ROWS:
        is_main = rows["ratio"].isin([1.0, experiment.main_ratio, math.inf])
        rows = rows[is_main | rows["is_bound"]]
    places = {
        experiment.baseline: 0,
        experiment.floor: 2,
    }
    rows = rows.assign(order=rows["row"].map(places).fillna(1))
    rows = rows.sort_values(
        ["order", "ratio", "difference"], ascending=[True, True, False], kind="stable"
    )
    return rows.assign(runs=[_runs(line) for line in rows.to_dict("records")])


def _columns(frames: Frames, rows: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """The columns of the table of rows, each with its head and format."""
    metric = frames.metric
    unit = "%" if metric.unit == "percent" else metric.unit
    columns = {
        "label": ("method", "text"),
        "ratio": ("ratio", "amount"),
        "learning_rate": ("rate", "short"),
        "models_sent": ("models", "amount"),
        "link_models": ("link", "amount"),
        "runs": ("runs", "text"),
        "mean": (f"{metric.score_label}, {unit}", _written(frames)),
        "difference": ("difference", "points"),
        "difference_low, difference_high": ("95 % interval", "interval"),
    }
    if rows["runs"].str.isdigit().all():
        columns["runs"] = ("runs", "count")
    for name in ("models_sent", "link_models"):
        if rows[name].isna().all():
            del columns[name]
    return columns


def _num_tests(frames: Frames) -> int:
    """One-sided tests of the contrasts that may have a verdict."""
    contrasts = zip(frames.contrasts, are_without_verdict(frames), strict=True)
    return sum(contrast.num_tests for contrast, is_late in contrasts if not is_late)


def _written(frames: Frames) -> str:
    """The format of a score."""
    return "percent" if frames.metric.is_share else "loss"


def _runs(line: Mapping[Any, Any]) -> str:
    """How many runs are done, in words where that is not all."""
    text = str(line["num_runs"])
    if line["num_runs"] != line["num_planned"]:
        text = f"{line['num_runs']} of {line['num_planned']}"
    if line["num_diverged"]:
        text = f"{text}, {line['num_diverged']} diverged"
    return text


def _verdict_table(frames: Frames, contrasts: pd.DataFrame) -> pd.DataFrame:
    """One line a verdict: the contrasts that have it, each with its estimate."""
    by_verdict: dict[str, list[str]] = {word: [] for word in VERDICTS}
    for line in contrasts.to_dict("records"):
        text = _compared(frames, line)
        if not math.isnan(line["estimate"]):
            text = f"{text} ({points(line['estimate'])})"
        by_verdict[line["verdict"]].append(text)
    lines = [(word, "; ".join(texts)) for word, texts in by_verdict.items() if texts]
    return pd.DataFrame(lines, columns=["verdict", "which"])


def _compared(frames: Frames, line: Mapping[Any, Any]) -> str:
    """The names of a contrast's rows; of one with the baseline that of the row alone."""
    joined = _JOINED[line["kind"]]
    if line["verdict"] in (BETTER_BY_MARGIN, WORSE_BY_MARGIN):
        joined = " less "
    name = _name(frames, line["row"])
    if not joined:
        return name
    return name + joined + _name(frames, line["reference"])


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
    """A row's label, with its ratio where the label alone would not tell which row it is."""
    line = frames.row(row)
    rows = frames.rows
    alike = rows[(rows["label"] == line["label"]) & rows["base"].isna()]
    main_ratio = frames.experiment.main_ratio
    is_main = main_ratio is not None and line["ratio"] in (1.0, main_ratio)
    if is_main or alike["ratio"].nunique() < 2:
        return str(line["label"])
    return f"{line['label']} at ratio {amount(line['ratio'])}"


def _rate_table(frames: Frames, rates: pd.DataFrame) -> pd.DataFrame:
    """One line a row: the chosen rate with its score, all scores by rate, and how much better the
    best rate is."""
    kind = "test" if (rates["kind"] == "test").any() else "held out"
    write = FORMATS[_written(frames)]
    lines = []
    for row, group in rates[rates["kind"] == kind].groupby("row", sort=False):
        rate = score = math.nan
        chosen = group[group["is_chosen"]]
        if len(chosen):
            rate, score = chosen[["learning_rate", "score"]].iloc[0]
        by_rate = [
            f"{write(line['score'])} at {short(line['learning_rate'])}"
            for line in group.to_dict("records")
        ]
        lines.append(
            {
                "label": _name(frames, str(row)),
                "rate": rate,
                "score": score,
                "said": ", ".join(by_rate),
                "better": float(group["score"].max()) - score,
                "kind": kind,
                "num_runs": group["num_runs"].max(),
            }
        )
    columns = [
        "label",
        "rate",
        "score",
        "said",
        "better",
        "kind",
        "num_runs",
    ]
    return pd.DataFrame(lines, columns=columns)


def _provenance(frames: Frames) -> dict[str, Any]:
    """What all rows have in common, and who ran them where and with what code."""
    attempts = frames.attempts
    states = _states_of_code(attempts)
    statuses = frames.runs["status"]
    without = statuses[statuses.isin(("failed", "missing"))].value_counts().sort_index()
    seconds = frames.runs.drop_duplicates("run_id")["wall_seconds"].fillna(0).astype(float)
    packages = ""
    if len(attempts):
        packages = attempts["packages"].value_counts().index[0]
    return {
        "settings": "; ".join(_settings(frames)),
        "failures": listed([f"{number} {status}" for status, number in without.items()]),
        "attempts": states.iloc[:_MOST_STATES],
        "more_states": max(0, len(states) - _MOST_STATES),
        "num_attempts": len(attempts),
        "num_changed": int(attempts["git_diff_sha256"].notna().sum()),
        "hours": float(seconds.sum()) / 3600,
        "packages": packages,
    }


def _settings(frames: Frames) -> list[str]:
    """What all rows have in common, a setting each."""
    experiment = frames.experiment
    config = experiment.config | {"seeds": experiment.seeds}
    baseline = experiment.baseline
    if baseline:
        seeds = frames.runs.loc[frames.runs["row"] == baseline, "seed"].unique().tolist()
        if sorted(seeds) != experiment.seeds:
            config |= {f"seeds of {_name(frames, baseline)}": sorted(seeds)}
    # Records keep the name that runs' ids are made of.
    names = {"wire": "communication dtype"}
    settings = []
    for key, value in config.items():
        text = _value(value)
        if text:
            settings.append(f"{names.get(key, key).replace('_', ' ')}: {text}")
    return settings


def _states_of_code(attempts: pd.DataFrame) -> pd.DataFrame:
    """How many runs each state of the code and each machine had, the most first."""
    processors = zip(attempts["cpu"], attempts["num_cpus"], strict=True)
    named = attempts.assign(
        commit=[str(commit)[:12] if commit else "none" for commit in attempts["git_commit"]],
        changed=attempts["git_diff_sha256"]
        .notna()
        .map(
            {
                True: "yes",
                False: "no",
            }
        ),
        cpu=[f"{cpu}, {num_cpus} CPUs" for cpu, num_cpus in processors],
    )
    groups = named.groupby(["commit", "changed", "device", "cpu"], dropna=False)
    states = groups["run_id"].nunique().rename("num_runs").reset_index()
    return states.sort_values("num_runs", ascending=False, kind="stable")


def _value(value: Any) -> str:
    """A setting as text: of a table its entries, without those that are nothing."""
    if isinstance(value, Mapping):
        entries = []
        for key, entry in value.items():
            if entry not in (0, [], None, {}, False):
                entries.append(f"{key.replace('_', ' ')} {_value(entry)}")
        return ", ".join(entries)
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)


def tuning_frame(frames: Frames) -> pd.DataFrame:
    """What the search cost by method: label, num_rows, num_trials, num_runs, num_epochs, rates,
    num_at_end."""
    named = frames.experiment.tuning
    choices = named.choices if named else {}
    selected = named.selected if named else {}
    trials = frames.tuning
    if selected:
        trials = trials[trials["row"].isin(frames.by_row.index)]
    lines = []
    for label, group in trials.groupby("label", sort=False):
        rows = list(group["row"].unique())
        rates = sorted({selected[row] for row in rows if row in selected})
        lines.append(
            {
                "label": label,
                "num_rows": len(rows),
                "num_trials": group["trial"].nunique(),
                "num_runs": group["run_id"].nunique(),
                "num_epochs": group.drop_duplicates("run_id")["num_epochs"].sum(),
                "rates": ", ".join(map(short, rates)) or None,
                "num_at_end": sum(choices[row].at_end for row in rows if row in choices),
            }
        )
    columns = [
        "label",
        "num_rows",
        "num_trials",
        "num_runs",
        "num_epochs",
        "rates",
        "num_at_end",
    ]
    return pd.DataFrame(lines, columns=columns)
