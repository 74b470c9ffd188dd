"""Where an experiment's numbers hold: its task, network, length, workers and seeds."""

from dataclasses import dataclass

from cser_bench.report.frame import Frames
from cser_bench.report.labels import NETWORKS, TASKS

STACKED = ("stacked", "threads")
"""Kinds of workers that are parts of one process."""


@dataclass(frozen=True)
class Regime:
    """Where an experiment's numbers hold.

    Attributes:
        task, network: as reports name them. num_parameters, num_steps: of the first row.
        num_workers, batch_size: None where a record has none.
        seeds: as a text. num_seeds: how many.
        is_emulated: whether all workers were parts of one process, so that nothing crossed a network.
    """

    task: str
    network: str
    num_parameters: int
    num_steps: int
    num_workers: int | None
    batch_size: int | None
    seeds: str
    num_seeds: int
    is_emulated: bool


def regime_of(frames: Frames) -> Regime:
    """Return where the numbers of an experiment hold."""
    experiment = frames.experiment
    backends = frames.attempts["backend"]
    # The first row has the experiment's own size and length; others may repeat it elsewhere.
    own_row = frames.rows.iloc[0]
    return Regime(
        task=TASKS.get(experiment.task, experiment.task),
        network=NETWORKS.get(experiment.model, experiment.model),
        num_parameters=int(own_row["num_parameters"]),
        num_steps=int(own_row["num_steps"]),
        num_workers=experiment.config.get("num_workers"),
        batch_size=experiment.config.get("batch_size"),
        seeds=", ".join(map(str, experiment.seeds)),
        num_seeds=len(experiment.seeds),
        # `all` holds of no attempts too, and of those nothing is known.
        is_emulated=bool(len(backends)) and bool(backends.isin(STACKED).all()),
    )
