"""Questions on where the method was run.

That is the width of the network, the load of a link, the skew of the data and the number of
workers.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cser_bench.harness.measures.declared import BEFORE_RUNS
from cser_bench.harness.records.experiment import Role
from cser_bench.report.accuracy_figures import draw_loads
from cser_bench.report.plotting import FAMILIES, GREY, SHAPES, end_labels, losses_up, new_figure
from cser_bench.report.questions.evidence import (
    CONTRAST,
    Answer,
    Compared,
    Evidence,
    Part,
    Speaker,
    nearest_first,
)
from cser_bench.report.statistics import LESS, MORE
from cser_bench.report.wording import code, in_words

FOLLOWED: dict[Speaker, tuple[str, str]] = {
    "blocks": ("M-CSER, blocks", "error reset"),
    "local": ("local SGD", "local steps"),
    "feedback": ("EF-SGD top-k", "error feedback"),
}
"""Methods that are followed over what changes, by what their rows speak for: name and family."""


class Place(NamedTuple):
    """Where an experiment stands on an axis: in which order, and under what name."""

    key: tuple[float, ...]
    name: str


def place_of(known: Compared, changed: Role) -> Place:
    """Return where an experiment stands on the axis of what changes."""
    config = known.frames.experiment.config
    num_parameters = known.num_parameters
    workers = config["num_workers"]
    batch = config["batch_size"]
    if changed == "width":
        return Place((num_parameters,), f"{num_parameters:,}")
    if changed == "workers":
        return Place((workers,), str(workers))
    if changed == "samples":
        return Place((workers,), f"{workers} x {batch}")
    return _place_of_partition(config["partition"])


def _place_of_partition(partition: Mapping[str, Any]) -> Place:
    """Return where a partition stands among others: the less skewed, the earlier."""
    if partition["kind"] == "dirichlet":
        alpha = partition["alpha"]
        return Place((1, -alpha), f"Dirichlet {alpha:g}")
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
    speakers: list[Speaker] = []
    for speaker in FOLLOWED:
        # A method that some place lacks would end in the middle of the figure.
        if all(known.row(speaker) for known in experiments):
            speakers.append(speaker)
    return Axis(changed, experiments, speakers)


def _over(evidence: Evidence, *changed: Role) -> Answer:
    """Return differences to the same set-up's baseline over what changes, with a panel for each."""
    axes = [axis_along(evidence, role) for role in changed]
    levels = evidence["levels"]
    parts: list[Part] = []
    others: set[str] = set()
    for axis in axes:
        parts += _parts_along(axis)
        others |= {known.name for known in axis.experiments}
    others.discard(levels.name)
    frame = evidence.contrasts(parts)
    on_first = frame[frame["what"] == changed[0]]
    places = on_first["at"].unique()
    first = on_first[on_first["at"] == places[0]]
    last = on_first[on_first["at"] == places[-1]]
    numbers = {
        "first": _estimates(first),
        "last": _estimates(last),
        "first_place": places[0],
        "last_place": places[-1],
        "models_sent": levels.value(levels.row("blocks"), "models_sent"),
        "others": [code(name) for name in sorted(others)],
    }
    return Answer(frame, numbers, _panels(frame, axes))


def _parts_along(axis: Axis) -> list[Part]:
    """Return each followed method against the baseline, at each place of an axis."""
    parts: list[Part] = []
    for known in axis.experiments:
        place = place_of(known, axis.changed)
        for speaker in axis.speakers:
            name, _ = FOLLOWED[speaker]
            columns = {
                "experiment": known.name,
                "what": axis.changed,
                "at": place.name,
                "method": name,
            }
            pairs = known.pairs((speaker, "baseline"))
            parts.append((known, pairs, columns))
    return parts


def _estimates(lines: pd.DataFrame) -> dict[Speaker, dict[Hashable, Any]]:
    """Return the contrast of each followed method at one place."""
    by_method = {line["method"]: line for line in lines.to_dict("records")}
    estimates = {}
    for speaker, (name, _) in FOLLOWED.items():
        if name in by_method:
            estimates[speaker] = by_method[name]
    return estimates


def _panels(frame: pd.DataFrame, axes_of: Sequence[Axis]) -> Figure:
    """Draw a panel for each of what changes."""
    figure, panels = new_figure(1.45, len(axes_of))
    for panel in panels[1:]:
        panel.sharey(panels[0])
    for panel, axis in zip(panels, axes_of, strict=True):
        _panel(panel, frame, axis, is_last=panel is panels[-1])
    panels[0].set_ylabel("points lost")
    # The other panels share this axis, and so its formatter.
    losses_up(panels[0])
    return figure


def _panel(panel: Axes, frame: pd.DataFrame, axis: Axis, is_last: bool) -> None:
    """Draw each method over what changes; names stand right of the last panel."""
    names = [place_of(known, axis.changed).name for known in axis.experiments]
    panel.set_xticks(range(len(names)), names)
    right = float(len(names))
    if is_last:
        right *= 1.3
    panel.set_xlim(-0.3, right - 0.7)
    panel.set_xlabel(axis_of(axis.experiments[0], axis.changed))
    on_axis = frame[frame["what"] == axis.changed]
    ends = []
    for number, (name, family) in enumerate(FOLLOWED.values()):
        lines = on_axis[on_axis["method"] == name]
        if lines.empty:
            continue
        places = np.array([names.index(at) for at in lines["at"]], dtype=float)
        widths = lines["high"] - lines["low"]
        middle = -100 * lines["estimate"].to_numpy()
        half = 50 * widths.to_numpy()
        # Marks of one place stand beside one another.
        panel.errorbar(
            places + 0.07 * (number - 1),
            middle,
            half,
            fmt=f"{SHAPES[family]}-",
            color=FAMILIES[family],
        )
        ends.append((len(names) - 0.9, float(middle[-1]), name, FAMILIES[family]))
    panel.axhline(0, **GREY)
    if is_last:
        end_labels(panel, ends)


def over_width(evidence: Evidence) -> Answer:
    """Answer question 8: what methods lose over loads of a link, and over widths of a network."""
    answer = _over(evidence, "width")
    lost = over_loads(evidence)
    loads = [_counted(lines) for _, lines in lost.groupby("network", sort=False)]
    is_before = lost["declared"] == BEFORE_RUNS
    widths = axis_along(evidence, "width").experiments
    bounds = evidence.elsewhere([widths[0], widths[-1]], ("floor", "baseline"))
    numbers = {
        **answer.numbers,
        "alone": bounds,
        "loads": loads,
        "exceptions": sum(counts["exceptions"] for counts in loads),
        "declared_before": int(is_before.sum()),
        "widths": [code(name) for name in answer.frame["experiment"].unique()],
        "sizes": [code(known.name) for known in evidence.all_of("size") if known.is_whole],
    }
    frame = pd.concat([answer.frame, lost], ignore_index=True)
    figure = answer.figure
    if len(lost):
        figure = draw_loads(lost)
    return replace(answer, frame=frame, numbers=numbers, figure=figure)


def _counted(lost: pd.DataFrame) -> dict[str, Any]:
    """Count what was shown of the losses on one network at several loads of a link.

    `exceptions` are methods of which one load less, of two that follow, has the smaller loss.
    """
    exceptions = 0
    for _, lines in lost.groupby("label", sort=False):
        # From the heaviest load to the lightest scores should fall.
        estimates = lines.sort_values("link_models", ascending=False)["estimate"]
        exceptions += int((estimates.diff() > 0).any())
    verdicts = lost["verdict"].value_counts()
    return {
        "network": lost["network"].iloc[0],
        "num": len(lost),
        "num_methods": lost["label"].nunique(),
        "num_loads": int(lost.groupby("label").size().max()),
        "more": int(verdicts.get(MORE, 0)),
        "less": int(verdicts.get(LESS, 0)),
        "exceptions": exceptions,
        "names": [code(name) for name in sorted(lost["experiment"].unique())],
    }


def over_loads(evidence: Evidence) -> pd.DataFrame:
    """Return what methods lose at three loads of a link, of methods run at all three.

    One load is that of their network's own experiment.
    """
    tables = [pd.DataFrame(columns=[*CONTRAST, "network", "experiment", "family"])]
    for known in nearest_first(evidence.all_of("loads")):
        usual = evidence.first("network", network=known.about.network)
        if usual is None or not known.is_whole:
            continue
        here = known.losses.assign(experiment=known.name)
        there = usual.losses.assign(experiment=usual.name)
        lost = pd.concat([here, there])
        num_loads = lost.groupby("label")["row"].transform("size")
        lost = lost[num_loads == 3]
        families = _families_of(known, usual)
        family = lost["row"].map(families)
        tables.append(lost.assign(network=known.about.network, family=family))
    return pd.concat(tables, ignore_index=True)


def _families_of(*experiments: Compared) -> dict[str, str]:
    """Return the family of each row's algorithm, by row; rows of one name are of one method."""
    found = {}
    for known in experiments:
        families = known.frames.experiment.families
        for row in known.frames.by_row.index:
            found[str(row)] = families.get(known.value(row, "algorithm"), "")
    return found


def over_skew(evidence: Evidence) -> Answer:
    """Answer question 18: from equal shares to two classes a worker."""
    answer = _over(evidence, "skew")
    own_network = evidence["levels"].about.network
    elsewhere = []
    for known in evidence.all_of("skew"):
        if known.about.network == own_network:
            continue
        skewed = _skewed(evidence, known)
        if skewed is not None:
            elsewhere.append(skewed)
    numbers = {**answer.numbers, "elsewhere": elsewhere}
    return replace(answer, numbers=numbers)


def _skewed(evidence: Evidence, known: Compared) -> dict[str, Any] | None:
    """Return what local steps and error reset differ by, with skewed and with equal shares.

    None where one of them is missing.
    """
    usual = evidence.first("network", network=known.about.network)
    if usual is None:
        return None
    speakers: list[tuple[Speaker, Speaker]] = [("local", "baseline"), ("blocks", "local")]
    here = known.contrasts_of(known.pairs(*speakers))
    there = usual.contrasts_of(usual.pairs(*speakers))
    if len(here) < 2 or len(there) < 2:
        return None
    return {
        "alone": evidence.elsewhere([known, usual], ("floor", "baseline")),
        "network": known.about.network,
        "setting": known.about.setting,
        "skewed": here.to_dict("records"),
        "equal": there.to_dict("records"),
        "models_sent": here["models_sent"].iloc[0],
        "names": [code(known.name), code(usual.name)],
    }


def over_workers(evidence: Evidence) -> Answer:
    """Answer question 19: more workers on the same data, and more workers with more data."""
    answer = _over(evidence, "workers", "samples")
    config = evidence["levels"].frames.experiment.config
    samples = config["task"]["num_train"] // config["num_workers"]
    numbers = {**answer.numbers, "samples": samples}
    return replace(answer, numbers=numbers)
