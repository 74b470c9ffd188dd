"""The paper's own experiments, as marks on an axis of models sent: how much its runs sent at which ratio."""

from __future__ import annotations

from matplotlib.axes import Axes

from report.kit.plotting import SIZE
from report.kit.wording import whole

PAPER = {"CIFAR-100": (78_000, (1024, 256, 32)), "ImageNet": (600_500, (1024, 256, 32))}
"""Steps and ratios of the paper's experiments, by the released scripts: 200 epochs of 50,000 / 128, 120 of
1,281,167 / 256."""


_NAME = 1.6
"""Room for a mark's name, as a factor on the axis."""


def paper_models() -> dict[str, dict[int, float]]:
    """Models sent by experiment and ratio."""
    return {name: {ratio: steps / ratio for ratio in ratios} for name, (steps, ratios) in PAPER.items()}


def draw_paper(axes: Axes, names: bool = True) -> None:
    """A line per experiment with a mark and the ratio at each number of models that it sent.

    Args:
        axes: a low strip that shares its x axis, a logarithmic one of models sent, with the figure above.
        names: whether the lines are named on the left.
    """
    low, high = axes.get_xlim()
    for place, models in enumerate(paper_models().values()):
        shown = {ratio: sent for ratio, sent in models.items() if low <= sent <= high / _NAME}
        axes.plot(list(shown.values()), [-place] * len(shown), "|", color="#222222", markersize=5)
        for ratio, sent in shown.items():
            axes.annotate(
                f"{ratio:g}", (sent, -place), xytext=(2.5, 0), textcoords="offset points", va="center", fontsize=SIZE,
                color="#222222", in_layout=False,
            )  # fmt: skip
    axes.set_ylim(0.6 - len(PAPER), 0.6)
    axes.set_yticks([-place for place in range(len(PAPER))], [f"paper: {name}" for name in PAPER] if names else [])
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)


PAPER_NOTE = (
    "The strip marks what the paper's own runs sent, by their ratios; a run of ImageNet at ratio 32 sent "
    f"{whole(round(paper_models()['ImageNet'][32]))} models."
)
