"""A training run in a process (or processes) of its own, which takes steps when told: what `workers` compares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from algorithms import Collectives, ProcessGroupCollectives, Purpose, SoloCollectives
from harness.bench import methods
from harness.tasks.task import find_task
from harness.train.build import build_model
from harness.train.trainee import StackedTrainee, Trainee
from harness.workers.attempt import prepare_thread
from harness.workers.process_group import joined
from harness.workers.processes import Worker, WorkerProcesses, start_workers

Kind = Literal["processes", "stacked", "one thread"]
NUM_WORKERS = 8
NUM_BATCHES = 16
WAIT_SECONDS = 120.0


def replica(collectives: Collectives, algorithm: str = "mcser") -> Trainee:
    """One worker: the Fashion-MNIST network, by default with M-CSER at ratio 256, and random data of its own."""
    config = methods.config_of(algorithm)
    model = build_model(config.model, find_task(config.task.name), config.seed, torch.device("cpu"))
    return Trainee(config, model, collectives, NUM_BATCHES)


def start_training(kind: Kind, algorithm: str = "mcser") -> WorkerProcesses:
    """Eight workers; told a number of steps, process 0 says None when they are done.

    Args:
        kind: workers as processes over gloo, stacked in one thread, or their replicas one after the other in one
            thread. The last leaves out the averaging, which is little, and in its favour.
        algorithm: of processes, the method.
    """
    if kind == "processes":
        return start_workers(_as_rank, [(algorithm,)] * NUM_WORKERS)
    if kind == "stacked":
        return start_workers(_stacked, [()])
    return start_workers(_in_one_thread, [()])


def _as_rank(worker: Worker, algorithm: str) -> None:
    prepare_thread()
    with joined("cpu", WAIT_SECONDS, worker.init_method, worker.rank, NUM_WORKERS):
        collectives = ProcessGroupCollectives()
        _obey([replica(collectives, algorithm)], collectives, worker)


def _in_one_thread(process: Worker) -> None:
    prepare_thread()
    _obey([replica(SoloCollectives()) for _ in range(NUM_WORKERS)], SoloCollectives(), process)


def _stacked(process: Worker) -> None:
    prepare_thread()
    config = methods.config_of("mcser")
    model = build_model(config.model, find_task(config.task.name), config.seed, torch.device("cpu"))
    _obey([StackedTrainee(config, model, NUM_BATCHES)], SoloCollectives(), process)


def _obey(replicas: Sequence[Trainee | StackedTrainee], collectives: Collectives, process: Worker) -> None:
    """Take the steps that worker 0 is told to, until the process is ended."""
    num_steps = torch.zeros(1, dtype=torch.int64)
    while True:
        if collectives.rank == 0:
            num_steps.fill_(process.pipe.recv())
        collectives.broadcast_(num_steps, Purpose.EVALUATION)
        for _ in range(int(num_steps)):
            for each in replicas:
                each.step()
        collectives.all_reduce_sum_(torch.zeros(1), Purpose.EVALUATION)
        if collectives.rank == 0:
            process.pipe.send(None)
