"""A page a method: what its file says of it, where it stands in every experiment, and its code."""

import html
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from cser_bench.report.frame import Frames
from cser_bench.report.sensitivity import claimed_contrasts
from cser_bench.report.site.method_files import MethodFile
from cser_bench.report.site.render import code_html
from cser_bench.report.statistics import against_baseline
from cser_bench.report.wording import NOT_TESTED, amount, finding, gap, interval, span

_PART = re.compile(r"^(Source|Cost|State|Deviations?)[:.] ", re.MULTILINE)


@dataclass(frozen=True)
class Standing:
    """What an experiment says of a method's row.

    algorithm: name of the method in specs. experiment: name. network: in words; num_parameters: its
    size. row: label of the row. models: what a link carries in a run, in models. held: the most
    that a worker holds in a step, in models; None where it is not known. against: label of what it
    is compared with. loss (the gap), interval and verdict: in words. declared: when that was declared.
    """

    algorithm: str
    experiment: str
    network: str
    num_parameters: int
    row: str
    models: float | None
    held: float | None
    against: str
    loss: str
    interval: str
    verdict: str
    declared: str


def standings_of(frames: Frames) -> list[Standing]:
    """Return what an experiment says of its methods.

    A method has the declared comparisons of its rows. A method without one has its row that sent
    most, compared with the baseline, without a verdict.
    """
    if frames.is_tuning:
        return []
    lines = []
    declared = claimed_contrasts(frames)
    for line in declared.to_dict("records"):
        lines.append(_standing(frames, line))
    # Algorithms that have a line already.
    judged = {line.algorithm for line in lines}
    rows = frames.rows
    is_own = rows["base"].isna() & (rows["rule"] == "held_out")
    sent = rows[is_own].sort_values("models_sent", ascending=False, kind="stable")
    compared = against_baseline(frames).set_index("row", drop=False)
    for algorithm, row in zip(sent["algorithm"], sent["row"], strict=True):
        if algorithm in judged or row not in compared.index:
            continue
        judged.add(algorithm)
        line = dict(compared.loc[row])
        line["verdict"] = None
        line["declared"] = None
        lines.append(_standing(frames, line))
    return lines


def _standing(frames: Frames, line: Mapping[Any, Any]) -> Standing:
    """Return a comparison in words."""
    experiment = frames.experiment
    row = frames.row(line["row"])
    said = {**line, "unit": frames.metric.loss_unit, "margin": experiment.margin}
    network = experiment.model.replace("_", " ")
    if experiment.evidence is not None:
        network = experiment.evidence.network
    return Standing(
        algorithm=str(row["algorithm"]),
        experiment=experiment.name,
        network=network,
        num_parameters=int(row["num_parameters"]),
        row=str(row["label"]),
        models=row["link_models"],
        held=row["peak_models"],
        against=str(frames.row(line["reference"])["label"]),
        loss=f"{gap(said['estimate'], said['unit'])} {said['unit']}",
        interval=interval(said["low"], said["high"], said["unit"]),
        verdict=finding(said),
        declared=line["declared"] or "",
    )


def page_html(
    method: MethodFile, standings: Sequence[Standing], reports: Mapping[str, str]
) -> str:
    """Return the text of a method's page.

    Args:
        method: what its file says.
        standings: what experiments say of it.
        reports: links from this page to experiments' reports, by name.
    """
    facts = {
        "In specs": f"<code>{method.name}</code>",
        "In scripts": f"<code>from cser_bench.algorithms import {method.class_name}</code>",
        "Family": html.escape(method.family),
        "Sent per step, in bits of one worker": f"<code>{html.escape(method.formula)}</code>",
    }
    if method.path.startswith("algorithms/baselines/"):
        place = f"cser_bench.algorithms.baselines import {method.class_name}"
        facts["In scripts"] = f"<code>from {place}</code>"
    held = pd.Series([line.held for line in standings], dtype=float).dropna()
    if len(held):
        text = span((held.min(), held.max()))
        facts["A worker held at most, in models"] = (
            f"{text}, in the runs here: parameters, gradients, state and messages"
        )
    parts = [f"<h1>{html.escape(method.title)}</h1>", "<dl>"]
    for name, value in facts.items():
        parts.append(f"<div><dt>{name}</dt><dd>{value}</dd></div>")
    parts.append("</dl>")
    parts.append(f'<p class="lead">{words_html(method.lead)}</p>')
    parts += _docstring_html(method.text)
    parts.append('<h2 id="where-it-stands">Where it stands</h2>')
    parts += _standings_html(standings, reports)
    parts.append('<h2 id="code">Its code</h2>')
    parts.append(f"<p><code>{method.path}</code>, under its header:</p>")
    parts.append(code_html(method.code))
    return "\n".join(parts)


def _docstring_html(text: str) -> list[str]:
    """Return what follows a docstring's first line: source, update, cost and state under heads."""
    # Parts begin a paragraph each, also where they follow on the line before.
    apart = re.sub(r"(?<=[.)]) (?=State: )", "\n", text)
    apart = _PART.sub(lambda part: f"\n{part.group(0)}", apart)
    _, _, rest = apart.partition("\n")
    parts = []
    headings = {"Source": "Source", "Cost": "Cost", "State": "State of each worker"}
    has_update = False
    for block in re.split(r"\n\s*\n", rest.strip("\n")):
        if block.startswith("    "):
            if not has_update:
                parts.append('<h2 id="update">Update</h2>')
                has_update = True
            parts.append(code_html(textwrap.dedent(block)))
            continue
        name, colon, words = block.partition(":")
        heading = headings.get(name.strip())
        if heading is None or not colon:
            parts.append(f"<p>{words_html(block)}</p>")
            continue
        parts.append(f'<h2 id="{heading.split()[0].lower()}">{heading}</h2>')
        sentence = words.strip()
        parts.append(f"<p>{words_html(sentence[:1].upper() + sentence[1:])}</p>")
    return parts


def words_html(text: str) -> str:
    """Return prose of a docstring, whose code stands between backquotes."""
    line = " ".join(text.split())
    escaped = html.escape(line, quote=False)
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped)


_HEADS = (
    "network, experiment",
    "row",
    "against",
    "significant (Holm)",
    "drop or gap",
    "95 % CI",
    "models on a link",
    "declared",
)


def _standings_html(
    standings: Sequence[Standing], reports: Mapping[str, str]
) -> list[str]:
    """Return two tables: judged comparisons, and rows that were run without one."""
    by_name = sorted(standings, key=lambda line: line.experiment)
    # The largest networks first: they are nearest to what people train.
    ordered = sorted(by_name, key=lambda line: -line.num_parameters)
    judged = [line for line in ordered if line.verdict != NOT_TESTED]
    others = [line for line in ordered if line.verdict == NOT_TESTED]
    if not standings:
        return ["<p>No experiment that ships has run it.</p>"]
    parts = []
    if judged:
        parts.append(_standings_table("Declared comparisons", judged, reports))
    if others:
        caption = "Run, with no declared comparison: of each experiment the row that sent most"
        parts.append(_standings_table(caption, others, reports))
    return parts


def _standings_table(
    caption: str, lines: Iterable[Standing], reports: Mapping[str, str]
) -> str:
    """Return a table in a box that scrolls on a narrow screen."""
    heads = "".join(f'<th scope="col">{head}</th>' for head in _HEADS)
    rows = []
    for line in lines:
        network = html.escape(line.network)
        if line.experiment in reports:
            network = f'<a href="{reports[line.experiment]}">{network}</a>'
        # It may be broken at its words alone.
        experiment = html.escape(line.experiment).replace("_", "_<wbr>")
        name = f'{network} <code class="name">{experiment}</code>'
        models = ""
        if line.models is not None:
            models = amount(line.models)
        words = (
            line.row,
            line.against,
            line.verdict,
            line.loss,
            line.interval,
            models,
            line.declared,
        )
        cells = [html.escape(word) for word in words]
        row = "".join(f"<td>{cell}</td>" for cell in cells)
        rows.append(f'<tr><th scope="row">{name}</th>{row}</tr>')
    table = f"<table><caption>{caption}</caption><thead><tr>{heads}</tr></thead>"
    label = html.escape(caption)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">{table}'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
