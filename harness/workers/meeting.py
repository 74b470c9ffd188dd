"""How the ranks of a group meet: by a store, within one time limit, before the group is made.

Who does not come is named, and so is who was given something else than rank 0 was.
"""

from __future__ import annotations

import datetime
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NoReturn
from urllib.parse import urlparse

from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from cser_bench.algorithms import CollectiveError
from cser_bench.algorithms.core.in_time import in_time
from cser_bench.algorithms.core.process_group import translated_errors
from cser_bench.harness.spec.errors import SpecError

POLL_SECONDS = 0.05
"""Between two looks at who has come."""
ANSWER_SECONDS = 1.0
"""For a store to answer a question that waits for nobody."""
LEAVING_SECONDS = 5.0
"""For the others to hear why no group is made, before rank 0 ends and takes the store with it."""
GIVEN_UP = "given up"
"""The key of why no group is made."""
MOST_DIFFERENCES = 3
"""So many of a rank are said."""
VALUE_LENGTH = 60
"""So much of a setting is said."""


@dataclass(frozen=True)
class Meeting:
    """The ranks that are to be a group, and the store by which they talk until it stands.

    Attributes:
        deadline: of `time.monotonic`.
        limit_seconds: from the beginning to the deadline.
    """

    store: PrefixStore
    rank: int
    world_size: int
    deadline: float
    limit_seconds: float

    def told(self, what: str, own: object) -> list[Any]:
        """Tell it to all ranks, and return what each one tells, by rank.

        Raises CollectiveError: ranks told nothing until the deadline, and are named; or rank 0 is
        gone, and the store with it.
        """
        limit = max(0.0, self.deadline - time.monotonic()) + ANSWER_SECONDS
        try:
            return in_time(lambda: self._exchanged(what, own), limit)
        except TimeoutError:
            raise CollectiveError(
                f"rank 0, or whichever process keeps the store, did not answer within "
                f"{self.limit_seconds:g} s: it hangs"
            ) from None

    def _exchanged(self, what: str, own: object) -> list[Any]:
        keys = [f"{what} of {rank}" for rank in range(self.world_size)]
        with translated_errors():
            # Each says its own before it looks for the others': in the other order all would wait.
            self.store.set(keys[self.rank], json.dumps(own))
            # Asked again and again: a store that waits does not say for whom.
            while not self.store.check(keys):
                if time.monotonic() > self.deadline:
                    self._give_up(keys)
                # Who came later has a later deadline, and the store may not be there until then.
                if self.store.check([GIVEN_UP]):
                    raise CollectiveError(self.store.get(GIVEN_UP).decode())
                time.sleep(POLL_SECONDS)
            return [json.loads(self.store.get(key)) for key in keys]

    def _give_up(self, keys: Sequence[str]) -> NoReturn:
        """Raise CollectiveError for the ranks whose key is not there, and have all others do so."""
        silent = [rank for rank, key in enumerate(keys) if not self.store.check([key])]
        words = _did_not_come(silent, self.limit_seconds)
        self.store.set(GIVEN_UP, words)
        if self.rank == 0:
            time.sleep(ANSWER_SECONDS / 2)  # The others read it, before the store goes.
        raise CollectiveError(words)

    def differences(self, given: Mapping[str, Any]) -> list[str]:
        """Return what each rank was given otherwise than rank 0, in words; "" for nothing.

        Raises CollectiveError as `told`.
        """
        # Each compares for itself: only rank 0's is long, and is sent to all.
        first, *_ = self.told("given", given if self.rank == 0 else None)
        words = _in_words(list(_differences(given, first)))
        return list(self.told("differences", words))

    def leave(self) -> None:
        """Have rank 0 wait, but not for long, until all have heard what they are about to end for."""
        if self.rank > 0:
            self.store.set(f"end of {self.rank}", "null")
            return
        until = time.monotonic() + LEAVING_SECONDS
        with suppress(CollectiveError):
            replace(self, deadline=until).told("end", None)


def require_same(differences: Sequence[str]) -> None:
    """Raise SpecError where a rank was given something else than rank 0.

    `differences` are in the order of ranks.
    """
    different = [
        f"rank {rank} {words}" for rank, words in enumerate(differences) if words
    ]
    if different:
        raise SpecError(
            f"the ranks were not given the same: {'; '.join(different)}; start all ranks by the "
            "same command, with the same files"
        )


def meet(
    init_method: str, rank: int, world_size: int, key: str, limit_seconds: float
) -> Meeting:
    """Return the meeting of all ranks of `init_method`, to which the others may still come.

    Raises CollectiveError: rank 0, which has the store, does not come in time.
    """
    deadline = time.monotonic() + limit_seconds
    if init_method == "env://":
        rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    url = f"{init_method}?rank={rank}&world_size={world_size}"
    address = _address_of(init_method)
    if address is not None:
        if rank > 0:
            _await_rank_0(address, deadline, limit_seconds)
        # A world of one, as rank 0 would wait here for all others, and could not say for whom.
        url = f"{init_method}?rank={rank}&world_size=1"
    left = datetime.timedelta(seconds=max(POLL_SECONDS, deadline - time.monotonic()))
    with translated_errors():
        shared, _, _ = next(rendezvous(url, timeout=left))
    return Meeting(PrefixStore(key, shared), rank, world_size, deadline, limit_seconds)


def _address_of(init_method: str) -> tuple[str, int] | None:
    """Return where rank 0 listens; None where the ranks meet by a file."""
    if init_method == "env://":
        return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    url = urlparse(init_method)
    if url.scheme == "file":
        return None
    return str(url.hostname), int(url.port or 0)


def _await_rank_0(
    address: tuple[str, int], deadline: float, limit_seconds: float
) -> None:
    """Wait until somebody listens where rank 0 is to.

    torch's own attempt takes the time limit once for each kind of address.
    """
    while True:
        left = max(POLL_SECONDS, deadline - time.monotonic())
        try:
            socket.create_connection(address, left).close()
            return
        except OSError as error:
            if time.monotonic() + POLL_SECONDS > deadline:
                host, port = address
                raise CollectiveError(
                    f"{_did_not_come([0], limit_seconds)} (nobody listens at {host}:{port}: "
                    f"{error.strerror or error})"
                ) from None
        time.sleep(POLL_SECONDS)


def _did_not_come(ranks: list[int], seconds: float) -> str:
    """Say which ranks are missing."""
    if len(ranks) == 1:
        return f"rank {ranks[0]} did not come within {seconds:g} s; its own output says why"
    which = ", ".join(map(str, ranks))
    return f"ranks {which} did not come within {seconds:g} s; their own output says why"


def _differences(
    own: Mapping[str, Any], first: Mapping[str, Any], path: str = ""
) -> Iterator[str]:
    """Yield what a rank has otherwise than rank 0, each as the end of a sentence on that rank."""
    for key in {**first, **own}:
        where = f"{path} {key}".strip()
        if key not in own:
            yield f"lacks {where}"
        elif key not in first:
            yield f"has {where}, which rank 0 has not"
        elif isinstance(own[key], dict) and isinstance(first[key], dict):
            yield from _differences(own[key], first[key], where)
        elif own[key] != first[key]:
            yield f"has {where} {_short(own[key])}, rank 0 {_short(first[key])}"


def _in_words(differences: list[str]) -> str:
    """Return the first differences, and how many more there are; nothing where there are none."""
    words = ", ".join(differences[:MOST_DIFFERENCES])
    more = len(differences) - MOST_DIFFERENCES
    return f"{words}, and {more} more" if more > 0 else words


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= VALUE_LENGTH else f"{text[:VALUE_LENGTH]}..."
