"""The places of the largest numbers of a vector, as `torch.topk` chooses them."""

import math

from torch import Tensor

LEAST_NUMEL = 1_000_000
"""From so many numbers on, a threshold is looked for first; of fewer `torch.topk` is as fast."""
SAMPLED = 200_000
"""Numbers from which the threshold is estimated."""
DEVIATIONS = 6
"""Standard deviations by which the sample may have more of the largest than its share."""
MOST_SURVIVORS = 0.25
"""Share of all numbers beyond which the threshold saves nothing."""


def places_of_largest(numbers: Tensor, count: int) -> Tensor:
    """Return the places of the `count` largest numbers, in no order; NaN is larger than all.

    The set is that of `torch.topk(numbers, count, sorted=False)`, among equal numbers too. On the
    CPU one number in 192 of a long vector is found in about a quarter of its time. On a GPU the
    host would have to wait for the number of survivors, so there `torch.topk` itself is taken.
    """
    if numbers.device.type == "cpu" and len(numbers) >= LEAST_NUMEL:
        places = _among_survivors(numbers, count)
        if places is not None:
            return places
    return numbers.topk(count, sorted=False).indices


def _among_survivors(numbers: Tensor, count: int) -> Tensor | None:
    """Choose among the numbers from a threshold up, which is estimated from a sample.

    Return None where the threshold leaves too few or too many, or where the last place goes to one
    of several equal numbers: which one `torch.topk` takes depends on all the others.
    """
    # Every k-th, which is the same in each run; nothing is drawn.
    sample = numbers[:: len(numbers) // SAMPLED]
    # How many of the largest the sample has: binomial, so its deviation is about the root of that.
    expected = count * len(sample) / len(numbers)
    rank = math.ceil(expected + DEVIATIONS * math.sqrt(expected)) + 1
    if rank > MOST_SURVIVORS * len(sample):
        return None
    threshold = sample.topk(rank, sorted=False).values.min()
    # Not "from the threshold up", in which NaN would not be.
    survivors = (numbers < threshold).logical_not_().nonzero().view(-1)
    if not count <= len(survivors) <= MOST_SURVIVORS * len(numbers):
        return None
    kept = numbers[survivors]
    largest = kept.topk(count, sorted=False)
    num_as_large = int((kept < largest.values.min()).logical_not_().sum())
    if num_as_large > count:
        return None
    return survivors[largest.indices]
