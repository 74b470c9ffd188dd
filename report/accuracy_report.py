"""An accuracy experiment's report: its tables, and the numbers of its sentences.

templates/accuracy.md.j2 puts them in.
"""

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from cser_bench.report.accuracy_figures import (
    draw_loads,
    drawn_methods,
    few_methods_at_loads,
    finding,
    finding_of_loads,
    link_figure,
    loss_at_one_load,
    loss_figure,
    with_verdicts,
)
from cser_bench.report.declared import seen_when_declared
from cser_bench.report.efficiency import efficiency_frame
from cser_bench.report.efficiency_section import (
    curve_columns,
    curve_frames,
    efficiency_section,
    method_columns,
)
from cser_bench.report.frame import LOAD_TOLERANCE, Frames, sharing_baseline
from cser_bench.report.hours import draw_hours, gpu_set_ups, hours_frame
from cser_bench.report.regime import (
    assay_frame,
    lost_frame,
    needs_frame,
    noise_share,
    predictors_frame,
)
from cser_bench.report.render import write_report
from cser_bench.report.sizes import sizes_frame
from cser_bench.report.statistics import (
    BETTER,
    BETTER_BY_MARGIN,
    EQUAL,
    VERDICTS,
    WORSE,
    WORSE_BY_MARGIN,
    accuracy_frame,
    contrasts_frame,
    num_tests,
    rates_frame,
    seed_correlation,
)
from cser_bench.report.verdicts import (
    answer,
    asks_of_reference,
    loses,
    loss,
    loss_interval,
    margin_of,
    size,
    verdict,
)
from cser_bench.report.wording import FORMATS, amount, code, count, listed, short

MOST_ROWS = 62
"""A table of more rows would not fit on a page: it then has those of the main ratio alone."""

_MOST_STATES = 6
"""States of the code, or machines, that are named on a page."""

_JOINED = {
    EQUAL: "and",
    BETTER: "than",
    WORSE: "than",
    BETTER_BY_MARGIN: "than",
    WORSE_BY_MARGIN: "than",
}
"""Between the names of two methods that were compared, by verdict; else "beside"."""


def build_report(frames: Frames, output: Path | None = None, with_pdf: bool = True) -> Path:
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
    tables = tables_of(frames)
    figures, captions = _figures(frames, tables["accuracy"])
    hours = hours_frame(frames, tables["accuracy"])
    if hours["speed_up"].notna().any():
        captions["hours"] = (
            f"{frames.metric.label.capitalize()} against the speed-up of a whole run"
        )
        figures["hours"] = draw_hours(hours, frames, captions["hours"])
    context = _context(frames, tables)
    context |= {"hours_of_runs": hours, "gpu_set_ups": gpu_set_ups(frames)}
    context |= {"captions": captions, "figures": figures}
    csv = tables | _told_apart(frames)
    if len(hours):
        csv["hours"] = hours
    return write_report(
        output or frames.folder, "report", "accuracy.md.j2", context, csv, figures, with_pdf
    )


def tables_of(frames: Frames) -> dict[str, pd.DataFrame]:
    """Return every table of the report, whole and unrounded, by the name of its CSV file."""
    lost = lost_frame(frames)
    return {
        "accuracy": accuracy_frame(frames),
        "contrasts": contrasts_frame(frames),
        "efficiency": efficiency_frame(frames, curve_frames(frames)),
        "needs": needs_frame(frames),
        "lengths": assay_frame(frames),
        "lost": lost,
        "predictors": predictors_frame(lost),
        "rates": rates_frame(frames),
        "tuning_cost": tuning_frame(frames),
        "sizes": sizes_frame(frames),
    }


def _told_apart(frames: Frames) -> dict[str, pd.DataFrame]:
    """Return the frames, with what an interruption changes beside the attempts alone.

    That is times, and bookkeeping's traffic.
    """
    timed = []
    for name in frames.runs:
        group = str(name).split(".")[0]
        if group in ("wall_seconds", "control"):
            timed.append(name)
    runs = frames.runs.drop(columns=timed)
    times = frames.runs[["run_id", *timed]].drop_duplicates("run_id")
    attempts = frames.attempts.merge(times, on="run_id", how="left")
    scores = frames.scores.drop(columns="wall_seconds")
    return frames.tables | {"runs": runs, "scores": scores, "attempts": attempts}


def _figures(frames: Frames, accuracy: pd.DataFrame) -> tuple[dict[str, Figure], dict[str, str]]:
    """Draw the figures that there are numbers for, with what is said under them."""
    experiment = frames.experiment
    margin = experiment.margin
    families = experiment.families
    unit = frames.metric.loss_unit
    shown, title, load = loss_at_one_load(frames, accuracy)
    own = with_verdicts(frames, accuracy)
    figures = {}
    captions = {"loss": title}
    if load:
        captions["load"] = load
    in_panels = drawn_methods(own, families)
    has_panels = len(in_panels) > 0
    at_loads = few_methods_at_loads(own, families)
    if len(at_loads) and not has_panels:
        captions["loads"] = finding(frames, at_loads)
        at_loads = at_loads.assign(margin=margin)
        figures["loads"] = draw_loads(at_loads, captions["loads"])
    elif len(shown):
        figures["loss"] = loss_figure(shown, margin, captions["loss"], families, unit)
    if has_panels:
        captions["links"] = finding_of_loads(in_panels)
        figures["links"] = link_figure(own, margin, captions["links"], families, unit)
    return figures, captions


def _context(frames: Frames, tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """Return all that the template puts in: tables, numbers, and what is true of the experiment."""
    return {
        **tables,
        "experiment": frames.experiment,
        "frames": frames,
        **_about(frames),
        **_of_rows(frames, tables),
        **_of_contrasts(frames, tables),
        **_of_efficiency(frames, tables),
        "has_sizes": not tables["sizes"].empty,
        "sizes_columns": _sizes_columns(frames),
        "needs": _needs_table(tables["needs"], tables["accuracy"]),
        "noise": noise_share(tables["lost"]),
        "rates": _rate_table(frames, tables["rates"]),
        **_provenance(frames),
    }


def _about(frames: Frames) -> dict[str, Any]:
    """Return what the page says of the experiment itself."""
    label = frames.metric.label
    unit = frames.metric.loss_unit
    # The template asks for each of these, and stops at one that is undefined.
    # Rows may share a run, which is one all the same.
    runs = frames.runs.drop_duplicates("run_id")
    no_runs = {"done": 0, "diverged": 0, "planned": len(runs)}
    statuses = no_runs | runs["status"].value_counts().to_dict()
    algorithms = frames.rows["algorithm"]
    is_ours = (algorithms == "cser") & (frames.rows["local_step"] == "adamw")
    return {
        "status": statuses,
        "heading": label[:1].upper() + label[1:],
        "again": _asks_again(frames),
        "is_quoted": frames.has_role("reference"),
        "margin": margin_of({"margin": frames.experiment.margin or 0.0, "unit": unit}),
        "unit": unit,
        "baseline": _baseline_label(frames),
        "given": _given_rates(frames),
        "tuned_places": _tuned_places(frames),
        "written": _written(frames),
        "mcser": {"mcser", "cser"} <= set(algorithms),
        "ours": bool(is_ours.any()),
        "correlation": seed_correlation(frames),
        "sharing": [code(name) for name in sharing_baseline(frames)],
    }


def _of_rows(frames: Frames, tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """Return the rows that the page shows, and what they can tell."""
    accuracy = tables["accuracy"]
    begun, not_begun = _begun_rows(frames, accuracy)
    shown = _shown_rows(frames, begun)
    left_out = 0
    if not frames.is_tuning:
        left_out = int(begun["is_own"].sum()) - len(shown)
    assay: dict[Any, Any] = {"reason": "it has no rows"}
    lengths = tables["lengths"].to_dict("records")
    if lengths:
        assay = lengths[0]
        assay["lost"] = f"{loss(-assay['gap'], frames.metric.loss_unit)} {frames.metric.loss_unit}"
    return {
        "has_difference": bool(accuracy["difference"].notna().any()),
        "has_links": bool(accuracy["models_sent"].notna().any()),
        "assay": assay,
        "accuracy": shown,
        "columns": _columns(frames, shown),
        "left_out": left_out,
        "not_begun": not_begun,
    }


def _of_contrasts(frames: Frames, tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """Return the verdicts, and what must be known to read them."""
    accuracy = tables["accuracy"]
    contrasts = tables["contrasts"]
    counts = contrasts["verdict"].value_counts()
    num_seen = Counter(seen and seen.num_rows for seen in seen_when_declared(frames))
    return {
        "num_tests": num_tests(frames),
        "num_verdicts": {word: int(counts.get(word, 0)) for word in VERDICTS},
        "verdicts": _verdict_table(frames, contrasts),
        "contrasts": _answered(frames, contrasts),
        "asked_by_load": _asked_by_load(accuracy, contrasts),
        "compared": _losses_of_compared(frames, accuracy, contrasts),
        "num_seen": num_seen,
        "num_kept": sum(contrast.is_verdict_kept for contrast in frames.contrasts),
    }


def _of_efficiency(frames: Frames, tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """Return the section on statistical efficiency, and the heads of its tables."""
    section = efficiency_section(frames, tables["accuracy"], tables["efficiency"])
    return {
        "efficiency": section,
        "efficiency_columns": method_columns(frames, section),
        "curve_columns": curve_columns(frames, section),
    }


def _asks_again(frames: Frames) -> str | None:
    """Return the name of the experiment that asks the same questions as this one; None for none."""
    evidence = frames.experiment.evidence
    if evidence is None or not frames.contrasts:
        return None
    return evidence.asks_again


def _baseline_label(frames: Frames) -> str:
    """Return what the page calls the baseline."""
    baseline = frames.experiment.baseline
    if baseline is None:
        return "the baseline"
    return str(frames.row(baseline)["label"])


def _given_rates(frames: Frames) -> list[str]:
    """List the methods whose rate their spec gives, where others' rates were searched for."""
    tuning = frames.experiment.tuning
    if tuning is None:
        return []
    own = frames.rows[frames.rows["base"].isna() & frames.rows["learning_rate"].notna()]
    rows = frames.rows
    # A row that was tuned in some cells has its rate from these.
    tuned_in_cells = rows.loc[rows["row"].isin([*tuning.selected]), "base"].dropna()
    is_given = ~own["row"].isin([*tuning.selected, *tuned_in_cells])
    return [_name(frames, str(row)) for row in own.loc[is_given, "row"]]


def _tuned_places(frames: Frames) -> list[str]:
    """List the sizes and lengths in which the baseline was tuned, of an experiment that crosses them."""
    tuning = frames.experiment.tuning
    if tuning is None or frames.rows["num_parameters"].nunique() == 1:
        return []
    rows = frames.rows[frames.rows["row"].isin([*tuning.selected])]
    is_baseline = rows["row"].str.partition("@")[0] == frames.experiment.baseline
    places = rows.loc[is_baseline, ["num_parameters", "num_steps"]].sort_values(
        ["num_parameters", "num_steps"]
    )
    return [
        f"{count(place.num_parameters)} parameters at {count(place.num_steps)} steps"
        for place in places.itertuples()
    ]


def _needs_table(needs: pd.DataFrame, accuracy: pd.DataFrame) -> pd.DataFrame:
    """Return what methods need, of those tried at more than one ratio.

    There are no lines where every row has one seed, as losses then have no bounds.
    """
    if needs.empty or accuracy["difference_low"].isna().all():
        return needs[:0]
    needs = needs[needs["num_tried"] > 1]
    return needs.sort_values(["shown_less", "shown_more"])


def _begun_rows(frames: Frames, accuracy: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, int]]:
    """Return the rows that have a run, and of each method how many of its own rows have none.

    As a table of rows that were never begun says nothing, they are counted; where no run was begun
    at all, every row is returned.
    """
    statuses = frames.runs["status"] != "missing"
    has_run = accuracy["row"].map(statuses.groupby(frames.runs["row"]).any())
    if frames.is_tuning or not has_run.any():
        return accuracy, {}
    without = accuracy[~has_run & accuracy["is_own"]]
    return accuracy[has_run], Counter(without["label"])


def _shown_rows(frames: Frames, accuracy: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the page: the baseline first, a worker alone last, others by their loss."""
    experiment = frames.experiment
    rows = accuracy[accuracy["is_own"]]
    if frames.is_tuning:
        # A tuning shows the best trial of each row that it tunes.
        tuned = rows["row"].map(frames.by_row["tunes"])
        # pandas raises where a group has NaN alone, as a row has whose trials all lack a score.
        means = rows["mean"].fillna(-math.inf)
        rows = rows.loc[means.groupby(tuned, sort=False).idxmax()]
    if len(rows) > MOST_ROWS:
        is_main = rows["ratio"].isin([1.0, experiment.main_ratio, math.inf])
        rows = rows[is_main | rows["is_bound"]]
    places = {experiment.baseline: 0, experiment.floor: 2}
    order = rows["row"].map(places).fillna(1)
    rows = rows.assign(order=order)
    rows = rows.sort_values(["order", "difference"], ascending=[True, False], kind="stable")
    unit = frames.metric.loss_unit
    lines = rows.to_dict("records")
    return rows.assign(
        runs=[_runs(line) for line in lines],
        loss=[loss(line["difference"], unit) for line in lines],
        loss_interval=[
            loss_interval(line["difference_low"], line["difference_high"], unit) for line in lines
        ],
    )


def _columns(frames: Frames, rows: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """Return the columns of the table of rows, each with its head and format."""
    metric = frames.metric
    unit = metric.unit
    if unit == "percent":
        unit = "%"
    columns = {
        "label": ("method", "text"),
        "ratio": ("ratio", "amount"),
        "learning_rate": ("rate", "short"),
        "models_sent": ("models", "amount"),
        "link_models": ("link", "amount"),
        "runs": ("runs", "text"),
        "mean": (f"{metric.score_label}, {unit}", _written(frames)),
        "loss": (f"lost, {metric.loss_unit}", "digits"),
        "loss_interval": ("95 % interval", "text"),
    }
    # Bare numbers stand at the right, as others do; with words among them they are text.
    if rows["runs"].str.isdigit().all():
        columns["runs"] = ("runs", "count")
    for name in ("models_sent", "link_models"):
        if rows[name].isna().all():
            del columns[name]
    return columns


def _sizes_columns(frames: Frames) -> dict[str, tuple[str, str]]:
    """Return the columns of the table of sizes and lengths, each with its head and format."""
    unit = "%" if frames.metric.is_share else "nats"
    return {
        "label": ("method", "text"),
        "num_parameters": ("parameters", "count"),
        "num_steps": ("steps", "count"),
        "num_runs": ("seeds", "count"),
        "baseline": (f"{_baseline_label(frames)}, {unit}", _written(frames)),
        "drop": (f"drop, {frames.metric.loss_unit}", "text"),
    }


def _written(frames: Frames) -> str:
    """Return the name of the format that scores are written in."""
    return "percent" if frames.metric.is_share else "nats"


def _runs(line: Mapping[Any, Any]) -> str:
    """Say how many runs are done, in words where that is not all."""
    num_runs = line["num_runs"]
    num_planned = line["num_planned"]
    num_diverged = line["num_diverged"]
    text = str(num_runs)
    if num_runs != num_planned:
        text = f"{num_runs} of {num_planned}"
    if num_diverged:
        text = f"{text}, {num_diverged} diverged"
    return text


def _verdict_table(frames: Frames, contrasts: pd.DataFrame) -> pd.DataFrame:
    """Return a line for each verdict: the contrasts that have it, each with its loss."""
    by_word: dict[str, list[str]] = {}
    for line in _in_order_of_verdicts(frames, contrasts):
        text = _compared(frames, line)
        if not math.isnan(line["estimate"]):
            text = f"{text} ({loss(line['estimate'], line['unit'])})"
        by_word.setdefault(verdict(line), []).append(text)
    lines = [(word, "; ".join(texts)) for word, texts in by_word.items()]
    return pd.DataFrame(lines, columns=["verdict", "which"])


def _in_order_of_verdicts(frames: Frames, contrasts: pd.DataFrame) -> list[dict[Any, Any]]:
    """Return contrasts with their unit, in the order in which a report lists verdicts."""
    lines = contrasts.assign(unit=frames.metric.loss_unit).to_dict("records")
    return sorted(lines, key=lambda line: VERDICTS.index(line["verdict"]))


def _compared(frames: Frames, line: Mapping[Any, Any]) -> str:
    """Return the names of a contrast's rows; of a loss that of the row alone."""
    name = _name(frames, line["row"])
    if line["kind"] == "non-inferiority":
        return name
    joined = _JOINED.get(line["verdict"], "beside")
    other = _name(frames, line["reference"])
    return f"{name} {joined} {other}"


def _answered(frames: Frames, contrasts: pd.DataFrame) -> pd.DataFrame:
    """Return the contrasts with their answers, each about the row that its question asks about.

    `loss`, `loss_interval` and `loss_at_equal_rate` are texts of that row's loss beside the other.
    """
    unit = frames.metric.loss_unit
    lines = []
    for line in contrasts.to_dict("records"):
        question = line["question"]
        named = {
            "unit": unit,
            "label": _name(frames, line["row"]),
            "other": _name(frames, line["reference"]),
        }
        said = line | named
        estimate, low, high = line["estimate"], line["low"], line["high"]
        equal_rate = line["at_equal_rate"]
        # A loss is always the row's, also where the question names first what it is held against.
        is_loss = line["kind"] == "non-inferiority"
        if not is_loss and asks_of_reference(question, named["label"], named["other"]):
            estimate, low, high = -estimate, -high, -low
            equal_rate = -equal_rate
        texts = {
            "answer": answer(said, question),
            "loss": loss(estimate, unit),
            "loss_interval": loss_interval(low, high, unit),
            "loss_at_equal_rate": loss(equal_rate, unit),
        }
        lines.append(said | texts)
    columns = [*contrasts.columns, "answer", "loss", "loss_interval", "loss_at_equal_rate"]
    return pd.DataFrame(lines, columns=columns)


def _asked_by_load(accuracy: pd.DataFrame, contrasts: pd.DataFrame) -> list[dict[str, Any]]:
    """Count, of each load of a link, the methods asked about and what was shown of them.

    A loss at one load says nothing about another, so an experiment at several counts them apart.
    """
    asked = contrasts[contrasts["kind"] == "non-inferiority"]
    own = accuracy[accuracy["is_own"]].set_index("row")
    loads = asked["row"].map(own["link_models"])
    asked = asked.assign(load=loads).sort_values("load")
    groups = []
    for _, group in asked.groupby(groups_at_one_load(asked["load"])):
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


def groups_at_one_load(loads: pd.Series) -> list[int]:
    """Return the number of the group at one load that each load is in, of loads in rising order.

    Every load of a group is compared with its lowest: a chain of small steps would join loads that
    are far apart.
    """
    groups: list[int] = []
    lowest = math.inf
    number = -1
    for load in loads:
        # An unknown load is NaN, comes last, and begins no group but where there is no other.
        if number < 0 or load > (1 + LOAD_TOLERANCE) * lowest:
            number += 1
            lowest = load
        groups.append(number)
    return groups


def _losses_of_compared(
    frames: Frames, accuracy: pd.DataFrame, contrasts: pd.DataFrame
) -> dict[str, Any]:
    """Find what the methods that were compared with each other lose against everything sent.

    A method that is better than another may still lose more than a worker alone.
    """
    rows = set(contrasts["row"]) | set(contrasts["reference"])
    own = accuracy[accuracy["is_own"] & accuracy["difference"].notna()]
    own = own.set_index("row")
    compared = own[own.index.isin(rows)]
    floor = frames.experiment.floor
    if compared.empty or floor is None or floor not in own.index:
        return {}
    alone = own.loc[floor, "difference"]
    differences = compared["difference"]
    is_below = (differences < alone) & (compared.index != floor)
    below = compared[is_below]
    unit = frames.metric.loss_unit
    return {
        "num": len(compared),
        "least": loses({"estimate": differences.max(), "unit": unit}),
        "most": loses({"estimate": differences.min(), "unit": unit}),
        "alone": loses({"estimate": alone, "unit": unit}),
        "below_alone": below["label"].tolist(),
    }


def _name(frames: Frames, row: str) -> str:
    """Return a row's label, with its ratio, or its size and length, where that tells which it is."""
    line = frames.row(row)
    label = str(line["label"])
    if frames.rows["num_parameters"].nunique() > 1:
        place = f"{count(line['num_parameters'])} parameters at {count(line['num_steps'])} steps"
        return f"{label} of {place}"
    ratio = line["ratio"]
    rows = frames.rows
    alike = rows[(rows["label"] == label) & rows["base"].isna()]
    main_ratio = frames.experiment.main_ratio
    is_main = main_ratio is not None and ratio in (1.0, main_ratio)
    if is_main or alike["ratio"].nunique() < 2:
        return label
    return f"{label} at ratio {amount(ratio)}"


def _rate_table(frames: Frames, rates: pd.DataFrame) -> pd.DataFrame:
    """Return a line for each row: the chosen rate with its score, and all scores by rate.

    `missed` is what the best rate would have gained over the chosen one. Scores are of test samples
    where any are, else of held-out ones.
    """
    kind = "held out"
    if (rates["kind"] == "test").any():
        kind = "test"
    write = FORMATS[_written(frames)]
    of_kind = rates[rates["kind"] == kind]
    lines = []
    for row, group in of_kind.groupby("row", sort=False):
        rate = math.nan
        score = math.nan
        chosen = group[group["is_chosen"]]
        if len(chosen):
            rate, score = chosen[["learning_rate", "score"]].iloc[0]
        by_rate = []
        for trial in group.to_dict("records"):
            score_text = write(trial["score"])
            rate_text = short(trial["learning_rate"])
            by_rate.append(f"{score_text} at {rate_text}")
        best = float(group["score"].max())
        line = {
            "label": _name(frames, str(row)),
            "rate": rate,
            "score": score,
            "said": ", ".join(by_rate),
            "missed": size(best - score, frames.metric.loss_unit) if best > score else None,
            "kind": kind,
            "num_runs": group["num_runs"].max(),
        }
        lines.append(line)
    columns = ["label", "rate", "score", "said", "missed", "kind", "num_runs"]
    return pd.DataFrame(lines, columns=columns)


def _provenance(frames: Frames) -> dict[str, Any]:
    """Return what all rows have in common, and who ran them where and with what code."""
    attempts = frames.attempts
    states = _states_of_code(attempts)
    is_changed = attempts["git_diff_sha256"].notna()
    statuses = frames.runs["status"]
    without_score = statuses[statuses.isin(("failed", "missing"))]
    counts = without_score.value_counts().sort_index()
    failures = [f"{number} {status}" for status, number in counts.items()]
    # Rows may share a run: its time counts once.
    runs = frames.runs.drop_duplicates("run_id")
    seconds = runs["wall_seconds"].fillna(0).astype(float)
    packages = ""
    if len(attempts):
        packages = attempts["packages"].value_counts().index[0]
    return {
        "settings": "; ".join(_settings(frames)),
        "failures": listed(failures),
        "attempts": states.iloc[:_MOST_STATES],
        "more_states": max(0, len(states) - _MOST_STATES),
        "num_attempts": len(attempts),
        "num_changed": int(is_changed.sum()),
        "hours": float(seconds.sum()) / 3600,
        "packages": packages,
    }


def _settings(frames: Frames) -> list[str]:
    """Return what all rows have in common, a setting each."""
    experiment = frames.experiment
    config = experiment.config | {"seeds": experiment.seeds}
    baseline = experiment.baseline
    if baseline:
        runs = frames.runs
        seeds = runs.loc[runs["row"] == baseline, "seed"].unique()
        baseline_seeds = sorted(seeds.tolist())
        if baseline_seeds != experiment.seeds:
            name = _name(frames, baseline)
            config[f"seeds of {name}"] = baseline_seeds
    # Records keep the name that runs' ids are made of.
    names = {"wire": "communication dtype"}
    settings = []
    for key, value in config.items():
        name = names.get(key, key).replace("_", " ")
        text = _value(value)
        if text:
            settings.append(f"{name}: {text}")
    return settings


def _states_of_code(attempts: pd.DataFrame) -> pd.DataFrame:
    """Count the runs that each state of the code and each machine had, the most first."""
    commits = [str(commit)[:12] if commit else "none" for commit in attempts["git_commit"]]
    is_changed = attempts["git_diff_sha256"].notna()
    changed = is_changed.map({True: "yes", False: "no"})
    processors = []
    for cpu, num_cpus in zip(attempts["cpu"], attempts["num_cpus"], strict=True):
        processors.append(f"{cpu}, {num_cpus} CPUs")
    named = attempts.assign(commit=commits, changed=changed, cpu=processors)
    groups = named.groupby(["commit", "changed", "device", "cpu"], dropna=False)
    states = groups["run_id"].nunique().rename("num_runs").reset_index()
    return states.sort_values("num_runs", ascending=False, kind="stable")


def _value(value: Any) -> str:
    """Return a setting as text: of a table its entries, without those that are nothing."""
    if isinstance(value, Mapping):
        entries = []
        for key, entry in value.items():
            if entry not in (0, [], None, {}, False):
                name = key.replace("_", " ")
                entries.append(f"{name} {_value(entry)}")
        return ", ".join(entries)
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)


def tuning_frame(frames: Frames) -> pd.DataFrame:
    """Return what the search cost by method.

    Columns: label, num_rows, num_trials, num_runs, num_epochs, rates, and num_at_end (rows whose
    best rate lies at an end of the grid).
    """
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
        # Rows may share a run: it was paid for once.
        runs = group.drop_duplicates("run_id")
        line = {
            "label": label,
            "num_rows": len(rows),
            "num_trials": group["trial"].nunique(),
            "num_runs": group["run_id"].nunique(),
            "num_epochs": runs["num_epochs"].sum(),
            "rates": ", ".join(map(short, rates)) or None,
            "num_at_end": sum(choices[row].at_end for row in rows if row in choices),
        }
        lines.append(line)
    columns = ["label", "num_rows", "num_trials", "num_runs", "num_epochs", "rates", "num_at_end"]
    return pd.DataFrame(lines, columns=columns)
