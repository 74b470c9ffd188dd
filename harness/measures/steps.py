"""What a step of data-parallel training is made of.

It has its passes, DDP's buckets, and what a ring carries.
"""

from __future__ import annotations

from cser_bench.harness.records.timings import Collective

FORWARD_SHARE = 1 / 3
"""The forward pass's part of the passes' time: a backward pass has twice its arithmetic."""

BUCKET_BYTES = 25 << 20
"""DDP's default for all buckets but the first, which at the start is of 1 MB, and the last."""


LOAD_TOLERANCE = 0.1
"""Rows are at one load if what they send, or their links carry, differs by this share at most."""


def link_models(
    models_sent: float, gathered: float, to_neighbours: float, num_workers: int
) -> float:
    """Return what one worker's link carries for what the worker sends, all in models.

    A ring all-reduce carries the payload 2 (n-1)/n times, an all-gather n-1 times, and a message to
    a neighbour once. This is `algorithms.core.traffic.carried` without torch, which reports may not
    load; a test holds the two together.

    Args:
        models_sent: all that the worker sends.
        gathered: the part of it that is all-gathered.
        to_neighbours: the part of it that goes straight to neighbours.
        num_workers: n.
    """
    n = num_workers
    all_reduced = models_sent - gathered - to_neighbours
    return 2 * (n - 1) / n * all_reduced + (n - 1) * gathered + to_neighbours


def ring_hops(
    collective: Collective, payload_bytes: float, num_workers: int
) -> tuple[int, float]:
    """Return the number of hops on a flat ring, and the bytes that a worker sends in each.

    An exchange with neighbours on a ring has one hop. The link of a machine with several workers
    carries as much as a worker sends: a ring over the ranks enters and leaves the machine once.
    """
    if collective == "exchange":
        # To both neighbours at once; `payload_bytes` has both messages.
        return 1, payload_bytes
    if collective == "all_gather":
        return num_workers - 1, payload_bytes
    # n - 1 hops that add up, then n - 1 that pass the sums on, each of 1 / n of the vector.
    return 2 * (num_workers - 1), payload_bytes / num_workers


def ring_bytes(collective: Collective, payload_bytes: float, num_workers: int) -> float:
    """Return the bytes that one worker sends in a ring, without headers."""
    hops, hop_bytes = ring_hops(collective, payload_bytes, num_workers)
    return hops * hop_bytes
