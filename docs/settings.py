"""Writes docs/settings.md: settings by traffic, and learning rates to begin with, from the records.

    python docs/settings.py

A test compares the page with what this says.
"""

import math
import sys
from collections import defaultdict
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from statistics import median
from typing import Any

from tabulate import tabulate
from torch import nn, zeros

from cser_bench.algorithms import DistributedOptimizer, StackedCollectives, algorithms
from cser_bench.harness.plan.by_traffic import settings_at_traffic
from cser_bench.harness.records.experiment import Row, read_experiment
from cser_bench.report.efficiency import efficiency_frame
from cser_bench.report.efficiency_section import efficiency_cell
from cser_bench.report.frame import read_frames

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "settings.md"
REFERENCE = ROOT / "results" / "reference"
SHARE = Fraction(1, 24)
WORKERS = (2, 4, 8, 16)
SHOWN_WORKERS = 8
NUMEL = 491_520
"""Length of a vector whose messages are hardly rounded up."""
RANK_1 = {"rank": 1}
SHAPES = ((32, 1, 3, 3), (32,), (64, 32, 3, 3), (64,), (10, 1600), (10,))
"""Shapes of a small network, since PowerSGD's traffic depends on them."""
EFFICIENCIES = "table_cnn"
RATES = (
    "table_cnn",
    "resnet_regime",
    "resnet_methods",
    "fashion_mnist_long",
    "gpt_text",
    "gpt_text_methods",
    "study_gpt_text_every_step",
)
"""Experiments whose tunings ship, and whose rates are compared with their baselines'."""

HEAD = """# Settings and learning rates to begin with

`python docs/settings.py` writes this page from the records that ship.

## Settings by traffic

`EFSGD.at_traffic(1 / 24, world_size=8)` gives settings for the constructor at which links carry 1/24 of DDP's traffic
(an all-reduce in fp32) between 8 workers. The table has them for every class, and what the same settings carry between
other numbers of workers. Messages that are all-gathered, as top-k's are, take more the more workers there are: ask
again where the number changes. Integers, such as an interval, are rounded to the nearest by factor;
`optimizer.traffic_share(world_size)` says what came of it. Above 1/2, which DDP has with its fp16 hook, it warns.
"""
CAPTION = """*Traffic: what a worker's link carries, as a share of DDP's in fp32; of PowerSGD on a network of six
tensors. Efficiency (95 % CI): the steps that DDP needs to a method's score over the method's steps, on two convolutions
of 35,434 parameters, Fashion-MNIST, 8 workers x 16 images, 1,496 steps
([report](../results/reference/table_cnn/report.md)). A dash: not run there.*
"""
RATES_HEAD = """## Learning rates

The learning rate that a method's tuning chose, over the one that the baseline's tuning chose in the same experiment.
Multiply your own baseline's tuned rate by the number under "begin with", and tune from there. Neighbours in a grid are
a quarter to half a decade apart, so 0.33 and 3 are one or two steps of it.
"""
RATES_CAPTION = """*Begin with: the median over experiments with SGD as the local step / with AdamW. Two numbers in a
cell are the lowest and the highest of several settings. `table_cnn`: two convolutions; `resnet_*`: Wide ResNet 10-1;
`fashion_mnist_long`: a perceptron; `gpt_*` and `study_gpt_*`: a small GPT with AdamW. 8 workers.*
"""


def settings_in_words(settings: dict[str, Any]) -> str:
    """Write settings as a call has them."""
    words = []
    for key, value in settings.items():
        rounded = f"{value:.3g}" if isinstance(value, float) else repr(value)
        shown = rounded.replace(", num_blocks=None", "").replace(", block_size=256", "")
        words.append(f"{key}={shown}")
    return ", ".join(words).replace("bits=4)", "4)").replace("ratio=", "")


def optimizer_of(
    method: type[DistributedOptimizer], settings: dict[str, Any], num_workers: int
) -> DistributedOptimizer:
    """Return the method on zeros, among so many workers."""
    shapes = SHAPES if settings == RANK_1 else ((NUMEL,),)
    parameters = [nn.Parameter(zeros(num_workers, *shape)) for shape in shapes]
    collectives = StackedCollectives(num_workers)
    return method(parameters, lr=0.1, momentum=0.9, collectives=collectives, **settings)


def efficiencies() -> dict[tuple[str, str], tuple[str, str]]:
    """Return the efficiencies by test loss and by accuracy, by algorithm and settings."""
    folder = REFERENCE / EFFICIENCIES
    lines = efficiency_frame(read_frames(folder))
    cells: dict[tuple[str, str], str] = {}
    for line in lines.to_dict("records"):
        cells[str(line["row"]), str(line["score_name"])] = efficiency_cell(line)
    found = {}
    for row in read_experiment(folder).rows:
        if (row.row, "score") in cells:
            of_row = (cells.get((row.row, "test_loss"), "–"), cells[row.row, "score"])
            found[key_of(row.algorithm, row.settings)] = of_row
    return found


def key_of(algorithm: str, settings: Any) -> tuple[str, str]:
    """Return what two rows of the same form have in common."""
    return algorithm, str(sorted((key, str(value)) for key, value in settings.items()))


def settings_table() -> str:
    """Return a line for each class that chooses its settings by traffic."""
    known = efficiencies()
    lines = []
    for name, method in algorithms().items():
        try:
            settings = method.at_traffic(float(SHARE), world_size=SHOWN_WORKERS)
            table = settings_at_traffic(method, float(SHARE), SHOWN_WORKERS).table
        except ValueError:
            if name != "powersgd":
                continue
            settings = table = dict(RANK_1)
        shares = []
        for num_workers in WORKERS:
            if any(key == "topology" for key in settings) or name == "noloco":
                optimizer = optimizer_of(method, settings, num_workers)
            else:
                optimizer = optimizer_of(method, settings, 2)
            shares.append(f"{optimizer.traffic_share(num_workers):.4f}")
        by_loss, by_score = known.get(key_of(name, table), ("–", "–"))
        words = f"`{settings_in_words(settings)}`"
        lines.append([f"`{method.__name__}`", words, *shares, by_loss, by_score])
    heads = ["class", "settings", *(f"{count} workers" for count in WORKERS)]
    heads += ["efficiency by test loss", "by accuracy"]
    return tabulate(lines, heads, tablefmt="github", disable_numparse=True)


def form_of(row: Row) -> str:
    """Name a row's method with the compressors that decide on its rate."""
    kinds = []
    for value in row.settings.values():
        if isinstance(value, dict) and value["kind"] not in kinds:
            kinds.append(value["kind"])
    words = " and ".join(str(kind).replace("_", " ") for kind in kinds)
    name = algorithms()[row.algorithm].__name__
    if row.settings.get("error_feedback_on") == "gradients":
        words += " on gradients"
    return f"`{name}`" + (f", {words}" if words else "")


def rate_factors() -> Iterator[tuple[str, str, float]]:
    """Give each tuned row's form, experiment, and rate over the baseline's."""
    for name in RATES:
        above = ROOT / "results" if name.startswith("study_") else REFERENCE
        experiment = read_experiment(above / name)
        rates = {row.row: row.learning_rate for row in experiment.rows}
        assert experiment.baseline is not None
        baseline = rates[experiment.baseline]
        for row in experiment.rows:
            is_own = (
                row.repeats is None and row.num_steps == experiment.rows[0].num_steps
            )
            # Not references: a single average at the end, or gradients that are averaged as well.
            is_bound = (
                row.settings.get("sync_interval") == "end"
                or "send_gradients" in row.settings
            )
            is_method = (
                row.algorithm not in ("sgd", "alone", "ddp")
                and row.local_step != "muon"
            )
            if is_own and is_method and not is_bound:
                yield form_of(row), name, row.learning_rate / baseline


def rates_table() -> str:
    """Return a line for each form, with a column for each experiment."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for form, name, factor in rate_factors():
        found[form][name].append(factor)
    lines = []
    for form, by_name in sorted(found.items()):
        cells = [factors_in_words(by_name.get(name, [])) for name in RATES]
        lines.append([form, begin_with(by_name), *cells])
    heads = ["method", "begin with, SGD / AdamW", *(f"`{name}`" for name in RATES)]
    return tabulate(lines, heads, tablefmt="github", disable_numparse=True)


def begin_with(by_name: dict[str, list[float]]) -> str:
    """Return the medians over experiments with SGD and over those with AdamW."""
    words = []
    for is_text in (False, True):
        of_kind = [
            math.exp(median(map(math.log, factors)))
            for name, factors in by_name.items()
            if ("gpt" in name) == is_text
        ]
        words.append(
            f"{math.exp(median(map(math.log, of_kind))):.2g}" if of_kind else "–"
        )
    return " / ".join(words)


def factors_in_words(factors: list[float]) -> str:
    """Write the lowest and the highest factor, once where they are one."""
    words = (
        [f"{factor:.2g}" for factor in sorted({min(factors), max(factors)})]
        if factors
        else []
    )
    return " to ".join(dict.fromkeys(words)) or "–"


def page() -> str:
    """Return the whole page."""
    parts = [
        HEAD,
        settings_table() + "\n",
        CAPTION,
        RATES_HEAD,
        rates_table() + "\n",
        RATES_CAPTION,
    ]
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"wrote {PAGE.relative_to(ROOT)}", file=sys.stderr)
