"""Which method, when: for kinds of network, links and latencies, what advice says of a job as run.

A cell is what `advise` says: the same lines, the same standing, the same choice. Losses are those of
the runs, and step times are modelled for one size that many know.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from cser_bench.report.advice.choice import (
    DOUBTFUL,
    LOSES,
    SAFE,
    TRIAL,
    Choice,
    choose,
    with_standing,
)
from cser_bench.report.advice.predictions import lines_as_run
from cser_bench.report.advice.runs import Line, alike_in, methods_run, own_length, ran_alike
from cser_bench.report.advice.which_figure import FAR, NEAR, Band, map_figure
from cser_bench.report.frame import Frames
from cser_bench.report.plotting import style
from cser_bench.report.questions.evidence import Compared, Evidence, evidence_for, folder_in_results
from cser_bench.report.questions.networks import kinds_of
from cser_bench.report.regime import tells
from cser_bench.report.render import escape, write_report
from cser_bench.report.speed.job import Sending, TrainingJob
from cser_bench.report.verdicts import interval_of, margin_of, with_unit
from cser_bench.report.wording import NONE, code, rate

NAME = "which-method"

NUM_PARAMETERS = 25_600_000
"""Of the job whose steps are modelled: those of ResNet-50."""

COMPUTE_SECONDS = 27e-3
"""Of that job: both passes of 32 images on a V100."""

RATES = (1e7, 2e7, 5e7, 1e8, 2e8, 5e8, 1e9, 2e9, 5e9, 1e10)
"""Of a machine's link in bits a second: 10 Mb/s to 10 Gb/s, three a decade.

On faster links the time to encode decides, which modelled steps leave out: a map there would flatter
whoever sends by top-k.
"""

LATENCIES = {NEAR: 50e-6, FAR: 20e-3}
"""Seconds of a hop, in one building and between cities."""

LISTED_AT = 1e9
"""Rate of the link at which methods that lose more are listed."""


@dataclass(frozen=True)
class Kind:
    """A kind of network with what was run on it.

    Attributes:
        name: with its optimiser.
        alike: experiments that ran alike, the one that speaks for the kind first.
        methods: what they lost and send, of the first one's own length.
    """

    name: str
    alike: list[Frames]
    methods: list[tuple[Line, list[Sending]]]

    @property
    def margin(self) -> float:
        """The first experiment's; one that can tell a loss has one."""
        margin = self.alike[0].experiment.margin
        assert margin is not None, "an experiment that can tell a loss has a margin"
        return margin


def build_which_method(results: Path, output: Path) -> Path:
    """Write which-method.md and its figures into a folder beside the answers, and return the page.

    The same records give the same bytes.

    Raises:
        RecordError: a record is damaged. UsageError: `results` is no folder. OSError: the output
            cannot be written.
    """
    evidence = evidence_for(output, results)
    kinds = telling_kinds(evidence)
    tables = {}
    figures = {}
    for place, latency in LATENCIES.items():
        bands = [band for kind in kinds for band in bands_of(kind, latency)]
        tables[place] = [_shown(kinds, band) for band in bands]
        with style():
            figures[f"which_method_{place}"] = map_figure(place, RATES, bands)
    context = {
        "near": tables[NEAR],
        "far": tables[FAR],
        "known": [_known(kind) for kind in kinds],
        "silent": [known.kind for known in kinds_of(evidence) if not tells(known.frames)],
        "num_parameters": NUM_PARAMETERS,
        "compute_seconds": COMPUTE_SECONDS,
        "latencies": LATENCIES,
        "listed_at": LISTED_AT,
    }
    return write_report(
        output,
        NAME,
        "which-method.md.j2",
        context,
        frames={},
        figures=figures,
        with_pdf=False,
    )


def telling_kinds(evidence: Evidence) -> list[Kind]:
    """Return the kinds of network on which a loss can be told, the largest network first."""
    chosen: list[Compared] = []
    for known in kinds_of(evidence):
        # Two experiments that ran alike are one kind, for which the first speaks.
        is_new = not any(ran_alike(known.frames, other.frames) for other in chosen)
        if is_new and tells(known.frames):
            chosen.append(known)
    # By size alone, where `kinds_of` has the reference last whatever its size.
    chosen.sort(key=lambda known: -known.num_parameters)
    kinds = []
    for known in chosen:
        others = alike_in(evidence, known.frames)
        alike = [known.frames, *(frames for frames in others if frames is not known.frames)]
        kinds.append(Kind(known.kind, alike, methods_run(alike, own_length(known.frames))))
    return kinds


def choice_at(
    kind: Kind,
    bits_per_second: float,
    latency_seconds: float,
) -> Choice:
    """Return what to use on a link, in a job as it was run."""
    return choose(_lines_at(kind, bits_per_second, latency_seconds))


def _lines_at(
    kind: Kind,
    bits_per_second: float,
    latency_seconds: float,
) -> Any:
    first = kind.alike[0]
    job = TrainingJob(
        num_parameters=NUM_PARAMETERS,
        num_steps=own_length(first),
        num_machines=first.experiment.config["num_workers"],
        workers_per_machine=1,
        compute_seconds=COMPUTE_SECONDS,
        bits_per_second=bits_per_second,
        latency_seconds=latency_seconds,
    )
    lines = lines_as_run(job, first, kind.methods)
    unit = first.metric.loss_unit
    return with_standing(lines, kind.margin).assign(unit=unit, margin=kind.margin)


def bands_of(kind: Kind, latency_seconds: float) -> list[Band]:
    """Return the ranges of rates over which the choice is the same, from the slowest link on."""
    bands: list[Band] = []
    for bits_per_second in RATES:
        choice = choice_at(kind, bits_per_second, latency_seconds)
        if bands and _keys(bands[-1].choice) == _keys(choice):
            first = bands.pop()
            bands.append(Band(kind.name, first.low, bits_per_second, first.choice))
        else:
            bands.append(Band(kind.name, bits_per_second, bits_per_second, choice))
    return bands


def _keys(choice: Choice) -> tuple[Any, ...]:
    trial = choice.trial
    key = None if trial is None else (trial["method"], trial["ratio"])
    return choice.safe["method"], choice.safe["ratio"], key


def _shown(
    kinds: Sequence[Kind],
    band: Band,
) -> dict[str, Any]:
    """Return a band as the table has it."""
    kind = next(kind for kind in kinds if kind.name == band.kind)
    links = {}
    for frames in kind.alike:
        links[frames.experiment.name] = f"../{folder_in_results(frames)}/report.md"
    return {
        "kind": band.kind,
        "link": _range(band),
        "safe": _named(band.choice.safe, links),
        "trial": _named(band.choice.trial, links) if band.choice.trial else NONE,
    }


def _range(band: Band) -> str:
    """Write the rates of a band."""
    if band.low == band.high:
        return rate(band.low)
    return f"{rate(band.low)} to {rate(band.high)}"


def _named(line: Line, links: dict[str, str]) -> str:
    """Name a method with its ratio, its loss and the report of its runs."""
    if line["family"] == "all sent":
        return str(line["method"])
    link = links[line["experiment"]]
    return Markup(
        f"**{escape(line['method'])}** at {line['ratio']:.4g}: {with_unit(line)} "
        f"({interval_of(line)}), [{code(line['experiment'])}]({link})"
    )


def _known(kind: Kind) -> dict[str, Any]:
    """Return what was run on a kind of network: its margin, and what stands where."""
    lines = _lines_at(kind, LISTED_AT, LATENCIES[NEAR])
    base = choose(lines).base
    first = dict(lines.iloc[0])
    faster = lines[lines["seconds"] < base["seconds"]]
    # Whether it is shown that more is lost stands in the reports.
    groups = {SAFE: (SAFE,), TRIAL: (TRIAL,), LOSES: (DOUBTFUL, LOSES)}
    names = {}
    for name, standings in groups.items():
        is_of_group = faster["standing"].isin(standings)
        names[name] = list(dict.fromkeys(faster.loc[is_of_group, "method"]))
    # A method is listed once, by its best ratio.
    names[TRIAL] = [name for name in names[TRIAL] if name not in names[SAFE]]
    better = {*names[SAFE], *names[TRIAL]}
    names[LOSES] = [name for name in names[LOSES] if name not in better]
    return {
        "kind": kind.name,
        "margin": margin_of(first),
        "num_parameters": int(kind.alike[0].rows["num_parameters"].iloc[0]),
        "num_steps": own_length(kind.alike[0]),
        "safe": "; ".join(names[SAFE]) or NONE,
        "trial": "; ".join(names[TRIAL]) or NONE,
        "loses": "; ".join(names[LOSES]) or NONE,
    }
