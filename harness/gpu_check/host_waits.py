"""Check: steps of training, their batches among them, during which the CPU never waits for the GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch

from algorithms import SoloCollectives
from harness.gpu_check.problem import Scale, config_of, initial_model, trainee_of
from harness.gpu_check.record import Checks, Outcome
from harness.tasks.cifar100 import CIFAR100Samples, padded
from harness.tasks.task import Batch
from harness.train.prefetch import Prefetched

WARM_UP, NUM_STEPS = 3, 8
"""Steps in which constants are made and libraries begin, and steps that are watched, a reset among them."""
NUM_IMAGES = 256


def checks(device: torch.device, scale: Scale) -> Checks:
    yield "steps without a wait", partial(never_waits, device, scale)


def never_waits(device: torch.device, scale: Scale) -> Outcome:
    """Training on images in memory, augmented; a wait is an error of torch's, which says for what."""
    config = config_of("mcser", scale)
    trainee = trainee_of(config, initial_model(config, device), SoloCollectives())
    images = torch.randint(256, (NUM_IMAGES, 3, 32, 32), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    labels = torch.zeros(NUM_IMAGES, dtype=torch.int64, device=device)
    samples = CIFAR100Samples(padded(images).to(device), labels, images.to(device), labels)
    indices = (torch.arange(config.batch_size) for _ in range(WARM_UP + NUM_STEPS))
    batches: Iterator[list[Batch]] = ([batch] for batch in samples.training_batches(indices, 1, 0, 0))
    if device.type == "cuda":
        batches = Prefetched(batches, device)
    for step, own in enumerate(batches):
        trainee.batches = own
        with _watched(device, step >= WARM_UP):
            trainee.step()
            if isinstance(batches, Prefetched):
                batches.prepare()
    passed, watched = trainee.optimizer.num_steps == WARM_UP + NUM_STEPS, NUM_STEPS * (device.type == "cuda")
    return Outcome(passed, f"{NUM_STEPS} steps watched, and no wait in them", {"watched": watched})


@contextmanager
def _watched(device: torch.device, watch: bool) -> Iterator[None]:
    if device.type != "cuda" or not watch:
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
