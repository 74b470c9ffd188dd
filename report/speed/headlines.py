"""The two published speed-ups, the workload that each is about, and the methods and baselines they are asked of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Headline:
    """A speed-up that was published for training one network on one task."""

    words: str
    target: float
    workload: str


HEADLINES = (
    Headline("4.5x on ImageNet", 4.5, "resnet50_v100"),
    Headline("nearly 10x on CIFAR-100", 10.0, "wide_resnet_40_8_v100"),
)

METHODS = ("mcser_32", "mcser", "mcser_1024")
"""Methods, by name, that the published speed-ups may have been of: the proposed one at each of its ratios."""

PROPOSED = "mcser"
"""The method, by name, of which single sentences are."""

RIVAL_WORDS = {
    "ddp": "DDP in fp32",
    "ddp_fp16": "DDP with its fp16 hook",
    "powersgd_2": "DDP with its PowerSGD hook of rank 2",
}
"""Baselines, by name, that sentences are about, all overlapped, and how they are called there."""

RIVALS = tuple(RIVAL_WORDS)
