"""Check: stacked workers' passes as CUDA graphs give the losses that they give without, and what that saves."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import torch

from algorithms import StackedCollectives
from harness.gpu_check.problem import Scale, config_of, initial_model
from harness.gpu_check.record import Checks, Outcome
from harness.tasks.task import Batch, TensorSamples, find_task
from harness.train.memory_format import lay_out
from harness.train.stacked import replicas_of
from harness.train.stopwatch import interleave, seconds_on
from harness.train.trainee import random_batch
from harness.train.training import Training
from harness.train.work import Checkpoints, Work

NUM_STEPS, REPETITIONS = 5, 10
TOLERANCE = 1e-3
"""Relative, of mean losses in fp32: cuDNN's sums may be in another order from one pass to the next."""


def checks(device: torch.device, scale: Scale) -> Checks:
    yield "CUDA graphs", partial(same_losses, device, scale)


def same_losses(device: torch.device, scale: Scale) -> Outcome:
    """The workers' mean losses over the same steps, a reset among them, then the ratio of step times.

    A CPU has no graphs, and takes the same steps twice.
    """
    with tempfile.TemporaryDirectory(prefix="cser-bench-") as folder:
        graphs, eager = (_stacked(device, scale, each, Path(folder)) for each in (True, False))
    batches = _batches(eager, scale, device)
    for _ in range(NUM_STEPS):
        for training in (graphs, eager):
            training.take_step(batches, iter(()))
    mean, expected = (each.losses[:, 0] / each.losses[:, 1] for each in (graphs, eager))
    difference = float(((mean - expected).abs() / expected).max())
    calls = {
        "graphs": partial(graphs.take_step, batches, iter(())),
        "eager": partial(eager.take_step, batches, iter(())),
    }
    seconds = interleave(calls, REPETITIONS, seconds_on(device))
    measured = {
        "relative difference of losses": difference,
        "step, eager / graphs": sum(seconds["eager"]) / sum(seconds["graphs"]),
    }
    refused = graphs.without_graphs
    passed = difference <= TOLERANCE and (refused is None or device.type != "cuda")
    remark = f"none were made: {refused}" if refused else "above 1: give --workers stacked --cuda-graphs"
    return Outcome(passed, f"graphs, and a difference of at most {TOLERANCE:g}", measured, remark)


def _stacked(device: torch.device, scale: Scale, cuda_graphs: bool, folder: Path) -> Training:
    config = config_of("mcser", scale)
    model, nothing = initial_model(config, device), torch.empty(0, device=device)
    lay_out(model, "auto")
    samples, collectives = TensorSamples(*[nothing] * 4), StackedCollectives(config.num_workers)
    checkpoints = Checkpoints(folder, 3600.0, "gpu-check")
    replicas = replicas_of(model, config.num_workers)
    return Training(Work(config, replicas, samples, collectives, None, checkpoints, cuda_graphs=cuda_graphs))


def _batches(training: Training, scale: Scale, device: torch.device) -> list[Batch]:
    task, like = find_task(training.work.config.task.name), torch.empty(0, device=device)
    generators = (torch.Generator().manual_seed(rank) for rank in range(training.work.config.num_workers))
    return [random_batch(task, scale.batch_size, generator, like) for generator in generators]
