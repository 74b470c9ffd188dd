"""A page a method: what its file says of it, where it stands in every experiment, and its code."""

import ast
import html
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cser_bench.report.frame import Frames
from cser_bench.report.regime import claimed_contrasts
from cser_bench.report.site.render import code_html
from cser_bench.report.statistics import against_baseline
from cser_bench.report.verdicts import NOT_JUDGED, interval_of, verdict, with_unit
from cser_bench.report.wording import amount, span

_PART = re.compile(r"^(Source|Cost|State|Deviations?)[:.] ", re.MULTILINE)


@dataclass(frozen=True)
class Method:
    """What the file of a method says.

    name: in specs. class_name: in scripts. family: in reports. formula: payload bits of one worker
    in a step. text: the file's docstring. path: of the file, in the repository. code: all of it.
    shares_file: whether another method stands in the same file.
    """

    name: str
    class_name: str
    family: str
    formula: str
    text: str
    path: str
    code: str
    shares_file: bool

    @property
    def title(self) -> str:
        """What the method is called."""
        head, colon, _ = self.text.split("\n")[0].partition(": ")
        if self.shares_file or not colon:
            return self.class_name
        return head

    @property
    def lead(self) -> str:
        """What the method is, in a sentence; without what it is called, where that is the title."""
        sentence = self.text.split("\n")[0].removeprefix(f"{self.title}: ")
        return sentence[:1].upper() + sentence[1:]

    @property
    def page(self) -> str:
        """Where its page stands in the site."""
        return f"methods/{self.name}.html"


def read_methods(root: Path) -> list[Method]:
    """Return the methods in the folder `algorithms` of the repository, sorted by name.

    Their files are read as text: nothing of them runs.
    """
    folder = root / "algorithms"
    classes: dict[str, dict[str, Any]] = {}
    for path in sorted([*folder.glob("*.py"), *folder.glob("baselines/*.py")]):
        tree = ast.parse(path.read_text())
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
                classes[node.name] = {
                    "bases": bases,
                    "path": path,
                    "text": ast.get_docstring(tree) or "",
                    **_constants(node),
                }
    methods = []
    named = {name: facts for name, facts in classes.items() if isinstance(facts.get("name"), str)}
    paths = [facts["path"] for facts in named.values()]
    for class_name, facts in named.items():
        path = facts["path"]
        method = Method(
            name=facts["name"],
            class_name=class_name,
            family=_inherited(classes, class_name, "family", "other"),
            formula=_inherited(classes, class_name, "formula", ""),
            text=facts["text"],
            path=path.relative_to(root).as_posix(),
            code=path.read_text(),
            shares_file=paths.count(path) > 1,
        )
        methods.append(method)
    return sorted(methods, key=lambda method: method.name)


def _constants(node: ast.ClassDef) -> dict[str, str]:
    """Return the texts that a class assigns in its body."""
    texts = {}
    for line in node.body:
        if not isinstance(line, ast.Assign) or not isinstance(line.value, ast.Constant):
            continue
        target = line.targets[0]
        if isinstance(target, ast.Name) and isinstance(line.value.value, str):
            texts[target.id] = line.value.value
    return texts


def _inherited(
    classes: Mapping[str, Mapping[str, Any]],
    class_name: str,
    fact: str,
    otherwise: str,
) -> str:
    """Return a fact of a class, or of the first of its bases that has it."""
    facts = classes.get(class_name)
    if facts is None:
        return otherwise
    if fact in facts:
        return str(facts[fact])
    for base in facts["bases"]:
        value = _inherited(classes, base, fact, "")
        if value:
            return value
    return otherwise


@dataclass(frozen=True)
class Standing:
    """What an experiment says of a method's row.

    algorithm: name of the method in specs. experiment: name. network: with its kind of task.
    row: label of the row. models: what a link carries in a run, in models. held: the most that a
    worker holds in a step, in models; None where it is not known. against: label of what it is
    compared with. loss, interval and verdict: in words. declared: when the comparison was declared.
    """

    algorithm: str
    experiment: str
    network: str
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

    Those of a method are the declared comparisons of its rows. A method without one has the row of
    its own that sent most, beside the baseline, with no verdict.
    """
    if frames.is_tuning:
        return []
    lines = []
    declared = claimed_contrasts(frames)
    for line in declared.to_dict("records"):
        lines.append(_standing(frames, line))
    judged = {line.algorithm for line in lines}
    rows = frames.rows
    is_own = rows["base"].isna() & (rows["rule"] == "held_out")
    sent = rows[is_own].sort_values("models_sent", ascending=False, kind="stable")
    compared = against_baseline(frames).set_index("row", drop=False)
    for algorithm, row in zip(sent["algorithm"], sent["row"], strict=True):
        if algorithm in judged or row not in compared.index:
            continue
        judged.add(algorithm)
        known = {str(key): value for key, value in compared.loc[row].items()}
        lines.append(_standing(frames, known | {"verdict": None, "declared": None}))
    return lines


def _standing(frames: Frames, line: Mapping[Any, Any]) -> Standing:
    """Return a comparison in words."""
    experiment = frames.experiment
    row = frames.row(line["row"])
    said = {**line, "unit": frames.metric.loss_unit, "margin": experiment.margin}
    evidence = experiment.evidence
    network = evidence.network if evidence else experiment.model.replace("_", " ")
    return Standing(
        algorithm=str(row["algorithm"]),
        experiment=experiment.name,
        network=network,
        row=str(row["label"]),
        models=row["link_models"],
        held=row["peak_models"],
        against=str(frames.row(line["reference"])["label"]),
        loss=with_unit(said),
        interval=interval_of(said),
        verdict=verdict(said),
        declared=line["declared"] or "",
    )


def page_html(
    method: Method,
    standings: Sequence[Standing],
    reports: Mapping[str, str],
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
    held = [line.held for line in standings if line.held is not None and line.held == line.held]
    if held:
        text = span((min(held), max(held)))
        facts["A worker held at most, in models"] = (
            f"{text}, in the runs here: parameters, gradients, state and messages"
        )
    parts = [f"<h1>{html.escape(method.title)}</h1>", "<dl>"]
    for name, value in facts.items():
        parts.append(f"<div><dt>{name}</dt><dd>{value}</dd></div>")
    parts.append("</dl>")
    parts.append(f'<p class="lead">{_words(method.lead)}</p>')
    parts += _docstring_html(method.text)
    parts.append('<h2 id="where-it-stands">Where it stands</h2>')
    parts += _standings_html(standings, reports)
    parts.append('<h2 id="code">Its code</h2>')
    parts.append(f"<p><code>{method.path}</code>, all of it:</p>")
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
            parts.append(f"<p>{_words(block)}</p>")
            continue
        parts.append(f'<h2 id="{heading.split()[0].lower()}">{heading}</h2>')
        sentence = words.strip()
        parts.append(f"<p>{_words(sentence[:1].upper() + sentence[1:])}</p>")
    return parts


def _words(text: str) -> str:
    """Return prose of a docstring, whose code stands between backquotes."""
    escaped = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped)


_HEADS = (
    "experiment",
    "network",
    "row",
    "models on a link",
    "against",
    "loss",
    "95 % interval",
    "verdict",
    "declared",
)


def _standings_html(standings: Sequence[Standing], reports: Mapping[str, str]) -> list[str]:
    """Return the tables of what is judged, and of what was run beside that."""
    judged = [line for line in standings if line.verdict != NOT_JUDGED]
    others = [line for line in standings if line.verdict == NOT_JUDGED]
    if not standings:
        return ["<p>No experiment that ships has run it.</p>"]
    parts = []
    if judged:
        parts.append(_table("Declared comparisons", judged, reports))
    if others:
        caption = "Run, with no declared comparison: of each experiment the row that sent most"
        parts.append(_table(caption, others, reports))
    return parts


def _table(caption: str, lines: Iterable[Standing], reports: Mapping[str, str]) -> str:
    heads = "".join(f'<th scope="col">{head}</th>' for head in _HEADS)
    rows = []
    for line in lines:
        name = f"<code>{line.experiment}</code>"
        if line.experiment in reports:
            name = f'<a href="{reports[line.experiment]}">{name}</a>'
        models = "" if line.models is None else amount(line.models)
        words = (line.against, line.loss, line.interval, line.verdict, line.declared)
        cells = [html.escape(line.network), html.escape(line.row), models]
        cells += [html.escape(word) for word in words]
        row = "".join(f"<td>{cell}</td>" for cell in cells)
        rows.append(f'<tr><th scope="row">{name}</th>{row}</tr>')
    table = f"<table><caption>{caption}</caption><thead><tr>{heads}</tr></thead>"
    label = html.escape(caption)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">{table}'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
