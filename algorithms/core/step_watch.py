"""Whether workers that train have come to differ in learning rates, steps or what is frozen."""

import json
from collections.abc import Callable, Mapping

from cser_bench.algorithms.core.agreement import (
    are_apart,
    difference,
    remedies_for,
    texts_of,
)
from cser_bench.algorithms.core.collectives import Collectives

EVERY = 256
"""Calls of `step()` between two that are looked at, once as many have been made."""


class StepWatch:
    """Compares workers at calls 2, 4, 8, ... of `step()`, and then at every 256th.

    No message is sent, and nobody waits for another worker or a GPU: each asks the group's store
    what the first worker at this call had. That takes the host about 0.1 ms, too much for every
    step of a small network. Who has something else raises, and as the process ends, the others'
    collectives say why.
    """

    def __init__(self, collectives: Collectives) -> None:
        self._collectives = collectives
        self._key = collectives.new_key()
        self._num_calls = 0

    def look_at(self, fields_now: Callable[[], Mapping[str, object]]) -> None:
        """Compare with the first worker at this call, if this is one that is looked at.

        Args:
            fields_now: returns what `in_step` gives.

        Raises:
            ValueError: something differs; the message says what, on which workers, and what to do.
        """
        # Calls and not steps: where the steps differ it is these that must be compared.
        self._num_calls += 1
        if not are_apart(self._collectives) or not _is_looked_at(self._num_calls):
            return
        fields = fields_now()
        own = texts_of(fields)
        said = json.dumps([self._collectives.rank, own])
        first_said = self._collectives.first_to_say(
            f"{self._key}, call {self._num_calls}", said
        )
        first_rank, first = json.loads(first_said)
        if first != own:
            texts = {first_rank: first, self._collectives.rank: own}
            raise ValueError(difference(fields, texts, remedies_for(fields)))


def _is_looked_at(call: int) -> bool:
    # The first is compared in full, by `FirstStep`.
    is_power_of_two = call & (call - 1) == 0
    return call > 1 and (is_power_of_two or call % EVERY == 0)
