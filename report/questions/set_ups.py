"""Questions on where the method was run: width of the network, load of a link, skew of the data and
number of workers."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cser_bench.harness.records.experiment import Role
from cser_bench.report.plotting import FAMILIES, GREY, end_labels, new_figure
from cser_bench.report.questions.evidence import Answer, Compared, Evidence, Part, Speaker
from cser_bench.report.wording import in_words

FOLLOWED: dict[Speaker, tuple[str, str]] = {
    "blocks": ("M-CSER, blocks", FAMILIES["error reset"]),
    "local": ("local SGD", FAMILIES["local steps"]),
    "feedback": ("EF-SGD top-k", FAMILIES["error feedback"]),
}
"""Methods that are followed over what changes, by what their rows speak for: name and colour."""


class Place(NamedTuple):
    """Where an experiment stands on the axis of what changes: in which order, and under what
    name."""

    key: tuple[float, ...]
    name: str


def place_of(known: Compared, changed: Role) -> Place:
    """Return where an experiment stands on the axis of what changes."""
    config = known.frames.experiment.config
    workers = config["num_workers"]
    batch = config["batch_size"]
    if changed == "width":
        return Place((known.num_parameters,), f"{known.num_parameters:,}")
    if changed == "workers":
        return Place((workers,), str(workers))
    if changed == "samples":
        return Place((workers,), f"{workers} x {batch}")
    partition = config["partition"]
    if partition["kind"] == "dirichlet":
        return Place((1, -partition["alpha"]), f"Dirichlet {partition['alpha']:g}")
    if partition["kind"] == "class_shards":
        shards = partition["shards_per_worker"]
        return Place((2, -shards), f"{in_words(shards)} classes")
    return Place((0,), "equal shares")


def axis_of(known: Compared, changed: Role) -> str:
    """Return what the axis says, given any experiment on it."""
    config = known.frames.experiment.config
    workers = config["num_workers"]
    batch = config["batch_size"]
    if changed == "width":
        return "parameters of the network"
    if changed == "workers":
        return f"workers, {workers * batch} images a step in all"
    if changed == "samples":
        share = config["task"]["num_train"] // workers
        return f"workers x images, {share:,} samples a worker"
    return "how labels are shared out"


class Axis(NamedTuple):
    """What changes, the experiments in its order, and the methods that all of them ran."""

    changed: Role
    experiments: list[Compared]
    speakers: list[Speaker]


def axis_along(evidence: Evidence, changed: Role) -> Axis:
    """Return the experiments on the network of the study of levels over what changes."""
    network = evidence["levels"].about.network
    experiments = evidence.all_of(changed, network=network)
    experiments = sorted(experiments, key=lambda known: place_of(known, changed).key)
    speakers = [speaker for speaker in FOLLOWED if all(known.row(speaker) for known in experiments)]
    return Axis(changed, experiments, speakers)


def _over(evidence: Evidence, *changed: Role) -> Answer:
    """Differences to the same set-up's baseline over what changes, with a panel for each."""
    axes = [axis_along(evidence, each) for each in changed]
    parts: list[Part] = []
    for axis in axes:
        for known in axis.experiments:
            for speaker in axis.speakers:
                columns = {
                    "what": axis.changed,
                    "at": place_of(known, axis.changed).name,
                    "method": FOLLOWED[speaker][0],
                }
                parts.append((known, known.pairs((speaker, "baseline")), columns))
    frame = evidence.contrasts(parts)
    on_first = frame[frame["what"] == changed[0]]
    places = list(dict.fromkeys(on_first["at"]))
    levels = evidence["levels"]
    names = {known.name for axis in axes for known in axis.experiments}
    numbers = {
        "first": _estimates(on_first[on_first["at"] == places[0]]),
        "last": _estimates(on_first[on_first["at"] == places[-1]]),
        "first_place": places[0],
        "last_place": places[-1],
        "models_sent": levels.value(levels.row("blocks"), "models_sent"),
        "others": [f"`{name}`" for name in sorted(names - {levels.name})],
    }
    return Answer(frame, numbers, _panels(frame, axes))


def _estimates(lines: pd.DataFrame) -> dict[Speaker, dict[str, Any]]:
    """The contrast of each followed method at one place."""
    by_method = {str(line["method"]): line for line in lines.to_dict("records")}
    return {
        speaker: {str(key): value for key, value in by_method[name].items()}
        for speaker, (name, _) in FOLLOWED.items()
        if name in by_method
    }


def _panels(frame: pd.DataFrame, axes_of: Sequence[Axis]) -> Figure:
    figure, panels = new_figure(1.45, len(axes_of))
    for panel in panels[1:]:
        panel.sharey(panels[0])
    for panel, axis in zip(panels, axes_of, strict=True):
        _panel(
            panel,
            frame,
            axis,
            is_last=panel is panels[-1],
        )
    panels[0].set_ylabel("points against SGD")
    return figure


def _panel(panel: Axes, frame: pd.DataFrame, axis: Axis, is_last: bool) -> None:
    """Draw each method over what changes; names stand right of the last panel."""
    names = [place_of(known, axis.changed).name for known in axis.experiments]
    panel.set_xticks(range(len(names)), names)
    right = 1.3 * len(names) if is_last else len(names)
    panel.set(xlim=(-0.3, right - 0.7), xlabel=axis_of(axis.experiments[0], axis.changed))
    ends = []
    for number, (name, colour) in enumerate(FOLLOWED.values()):
        lines = frame[(frame["method"] == name) & (frame["what"] == axis.changed)]
        if lines.empty:
            continue
        places = np.array([names.index(at) for at in lines["at"]], dtype=float)
        middle = 100 * lines["estimate"].to_numpy()
        half = 50 * (lines["high"] - lines["low"]).to_numpy()
        panel.errorbar(
            places + 0.07 * (number - 1),
            middle,
            half,
            fmt="o-",
            color=colour,
        )
        ends.append((len(names) - 0.9, float(middle[-1]), name, colour))
    panel.axhline(0, **GREY)
    if is_last:
        end_labels(panel, ends)


def over_width(evidence: Evidence) -> Answer:
    """Question 8: networks from fewer parameters than samples to four times as many."""
    answer = _over(evidence, "width")
    loads = over_loads(evidence)
    units = {known.about.network: known.unit for known in evidence.other_networks}
    numbers = {
        **answer.numbers,
        "elsewhere": evidence.elsewhere(evidence.other_networks, ("blocks", "baseline")),
        "loads": [line | {"unit": units[line["network"]]} for line in loads.to_dict("records")],
    }
    frame = pd.concat([answer.frame, loads], ignore_index=True)
    return replace(answer, frame=frame, numbers=numbers)


def over_loads(evidence: Evidence) -> pd.DataFrame:
    """Return what methods lose at other loads of a link and at that of their network's own
    experiment, of methods run at all three."""
    tables = [pd.DataFrame(columns=["link_models"])]
    for known in evidence.all_of("loads"):
        usual = evidence.first("network", network=known.about.network)
        if usual is None or not known.is_whole:
            continue
        lost = pd.concat(
            [each.losses.assign(experiment=each.name) for each in (known, usual)],
        )
        at_all_three = lost.groupby("label")["row"].transform("size") == 3
        tables.append(lost[at_all_three].assign(network=known.about.network))
    return pd.concat(tables).sort_values("link_models", ascending=False)


def over_skew(evidence: Evidence) -> Answer:
    """Question 18: from equal shares to two classes a worker."""
    answer = _over(evidence, "skew")
    own_network = evidence["levels"].about.network
    skewed = [
        _skewed(evidence, known)
        for known in evidence.all_of("skew")
        if known.about.network != own_network
    ]
    elsewhere = [other for other in skewed if other]
    networks = {other["network"] for other in elsewhere}
    numbers = {
        **answer.numbers,
        "elsewhere": elsewhere,
        "alike": [
            f"{known.the_network} (`{known.name}`)"
            for known in evidence.other_networks
            if known.about.network not in networks
        ],
    }
    return replace(answer, numbers=numbers)


def _skewed(evidence: Evidence, known: Compared) -> dict[str, Any] | None:
    """What local steps and error reset differ by on another network, with skewed and with equal
    shares; None where one of them is missing."""
    usual = evidence.first("network", network=known.about.network)
    if usual is None:
        return None
    speakers: list[tuple[Speaker, Speaker]] = [("local", "baseline"), ("blocks", "local")]
    here = known.contrasts_of(known.pairs(*speakers)).to_dict("records")
    there = usual.contrasts_of(usual.pairs(*speakers)).to_dict("records")
    if len(here) < 2 or len(there) < 2:
        return None
    return {
        "network": known.about.network,
        "setting": known.about.setting,
        "unit": known.unit,
        "skewed": here,
        "equal": there,
        "models_sent": here[0]["models_sent"],
        "names": [f"`{known.name}`", f"`{usual.name}`"],
    }


def over_workers(evidence: Evidence) -> Answer:
    """Question 19: more workers on the same data, and more workers with more data."""
    answer = _over(evidence, "workers", "samples")
    levels = evidence["levels"].frames.experiment.config
    samples = levels["task"]["num_train"] // levels["num_workers"]
    return replace(
        answer,
        numbers={
            **answer.numbers,
            "samples": samples,
        },
    )
