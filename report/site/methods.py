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

    name: in specs. class_name: in scripts. title: what it is called. lead: what it is, in a
    sentence. family: in reports. formula: payload bits of one worker in a step. text: where it is
    from, its update, cost and state, as its docstring has them. path: of the file, in the
    repository. code: what stands in the file under its docstring.
    """

    name: str
    class_name: str
    title: str
    lead: str
    family: str
    formula: str
    text: str
    path: str
    code: str

    @property
    def page(self) -> str:
        """Where its page stands in the site."""
        return f"methods/{self.name}.html"


def read_methods(root: Path) -> list[Method]:
    """Return the methods in the folder `algorithms` of the repository, sorted by name.

    Their files are read as text: nothing of them runs.
    """
    folder = root / "algorithms"
    classes: dict[str, _Class] = {}
    for path in sorted([*folder.glob("*.py"), *folder.glob("baselines/*.py")]):
        for read in _classes_in(path, path.relative_to(root).as_posix()):
            classes[read.name] = read
    methods = [read for read in classes.values() if "name" in read.constants]
    files = [read.path for read in methods]
    read_from = [_method(read, classes, files.count(read.path) > 1) for read in methods]
    return sorted(read_from, key=lambda method: method.name)


@dataclass(frozen=True)
class _Class:
    """A class of a file: its bases, the texts that it assigns, its docstring and the file's."""

    name: str
    path: str
    bases: Sequence[str]
    constants: Mapping[str, str]
    text: str
    text_of_file: str
    code: str


def _classes_in(path: Path, place: str) -> list[_Class]:
    """Return the classes of a file, whose path in the repository is `place`."""
    source = path.read_text()
    tree = ast.parse(source)
    first = tree.body[0]
    code = "\n".join(source.split("\n")[first.end_lineno :]).strip("\n")
    classes = []
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            read = _Class(
                name=node.name,
                path=place,
                bases=[base.id for base in node.bases if isinstance(base, ast.Name)],
                constants=_constants(node),
                text=ast.get_docstring(node) or "",
                text_of_file=ast.get_docstring(tree) or "",
                code=code,
            )
            classes.append(read)
    return classes


def _method(read: _Class, classes: Mapping[str, _Class], shares_file: bool) -> Method:
    """Return the method that a class is.

    Args:
        read: the class.
        classes: all, for what it has from its bases.
        shares_file: whether another method stands in its file. Then it is called by its class, and
            its own docstring says what it is.
    """
    text = read.text_of_file
    # Where a class of several says what it costs, it says all.
    if "\nCost: " in read.text:
        text = read.text.partition("\nArgs:")[0]
    title = read.name
    lead = text.split("\n")[0]
    if shares_file:
        lead = (read.text or text).split("\n")[0]
    elif ": " in lead:
        title, _, lead = lead.partition(": ")
    return Method(
        name=read.constants["name"],
        class_name=read.name,
        title=title,
        lead=lead[:1].upper() + lead[1:],
        family=_inherited(classes, read.name, "family", "other"),
        formula=_inherited(classes, read.name, "formula", ""),
        text=text,
        path=read.path,
        code=read.code,
    )


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
    classes: Mapping[str, _Class],
    name: str,
    fact: str,
    otherwise: str,
) -> str:
    """Return a text that a class assigns, or the first of its bases that has it."""
    if name not in classes:
        return otherwise
    if fact in classes[name].constants:
        return classes[name].constants[fact]
    for base in classes[name].bases:
        text = _inherited(classes, base, fact, "")
        if text:
            return text
    return otherwise


@dataclass(frozen=True)
class Standing:
    """What an experiment says of a method's row.

    algorithm: name of the method in specs. experiment: name. network: in words; num_parameters: its
    size. row: label of the row. models: what a link carries in a run, in models. held: the most
    that a worker holds in a step, in models; None where it is not known. against: label of what it
    is compared with. loss, interval and verdict: in words. declared: when that was declared.
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
        num_parameters=int(row["num_parameters"]),
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
    escaped = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped)


_HEADS = (
    "network, experiment",
    "row",
    "against",
    "verdict",
    "loss",
    "95 % interval",
    "models on a link",
    "declared",
)


def _standings_html(standings: Sequence[Standing], reports: Mapping[str, str]) -> list[str]:
    """Return the tables of what is judged, and of what was run beside that."""
    # The largest networks first: they are nearest to what people train.
    ordered = sorted(standings, key=lambda line: (-line.num_parameters, line.experiment))
    judged = [line for line in ordered if line.verdict != NOT_JUDGED]
    others = [line for line in ordered if line.verdict == NOT_JUDGED]
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
        network = html.escape(line.network)
        if line.experiment in reports:
            network = f'<a href="{reports[line.experiment]}">{network}</a>'
        # It may be broken at its words alone.
        experiment = line.experiment.replace("_", "_<wbr>")
        name = f'{network} <code class="name">{experiment}</code>'
        models = "" if line.models is None else amount(line.models)
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
