"""Collectives over a torch.distributed process group: NCCL on GPUs, gloo on CPUs."""

import atexit
import functools
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.distributed_c10d import _get_default_store, _world

from cser_bench.algorithms.core.collectives import (
    Add,
    CollectiveError,
    Collectives,
    Observer,
    SoloCollectives,
    mean_in_rank_order,
    share_of,
)
from cser_bench.algorithms.core.overlap import EarlyMeans
from cser_bench.algorithms.core.topology import Mixing
from cser_bench.algorithms.core.traffic import Mark, mark
from cser_bench.algorithms.core.warn import warn_script

# PyTorch 2.13 renamed it and warns of the old name.
_all_gather: Callable[..., object] = (
    getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
)

FIRST_FAILURE = "algorithms: first failure"
"""The key in the group's store of what ended the first process that failed."""
WORDS_LENGTH = 500
"""How much of that is kept: an error may hold a whole tensor, and the store is for short values."""
SIGNS_OF_AN_END = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
)
"""What a backend says of a process at the other end that is gone."""
_NUM_KEYS = Counter[str]()
"""How many keys have been made for each group, by its name."""
_NUM_TWINS = Counter[tuple[int, ...]]()
"""How many twins have been made of groups of these ranks of the world."""
TWINS = 1_000_000
"""The first number of a twin in its name, above the number of groups that a script makes."""


class ProcessGroupCollectives(Collectives):
    """One process's end of a process group that is already initialised.

    In which order it adds is the backend's affair.

    Args:
        group: the group, by default the world.
        overlap: reduce messages that depend on a few tensors' gradients while the backward pass is
            still at work; same results. Nothing may change gradients, parameters or learning rates
            between backward() and step(). It makes a second process group of the same workers, so
            all must ask for it; `close` gives it back.

    Raises:
        CollectiveError: from any collective that the backend could not do within the group's
            time-out.
    """

    def __init__(
        self,
        group: dist.ProcessGroup | None = None,
        overlap: bool = False,
        observer: Observer | None = None,
    ) -> None:
        super().__init__(dist.get_rank(group), dist.get_world_size(group))
        self.observer = observer
        _tell_others_at_the_end()
        self.group = group
        backend = dist.get_backend(group)
        self.device: torch.device | None = None
        """The device that tensors must be on to be sent; None if any will do."""
        if backend == "nccl":
            self.device = torch.device("cuda", torch.cuda.current_device())
        if overlap:
            self.twin = ProcessGroupCollectives(_twin(group), observer=observer)
            self.early = EarlyMeans(self.twin._mean_)

    def close(self) -> None:
        """Give back what overlap holds: the second group, with NCCL a communicator.

        All workers must call it together.

        Optimisers that have these collectives may not step any more. Without overlap it does
        nothing.
        """
        if self.early is None:
            return
        self.early.close()
        self.early = None
        twin = self.twin
        self.twin = self
        assert isinstance(twin, ProcessGroupCollectives)
        # That of a part of the workers stays to the end of all groups: torch would give the next
        # one its name, and so the addresses at which its workers met.
        if self.group is None or self.world_size == 1:
            dist.destroy_process_group(twin.group)

    @property
    def group_name(self) -> str:
        """The name of the group, which all its workers know it by."""
        group = self.group or dist.group.WORLD
        assert group is not None
        return str(group.group_name)

    def new_key(self) -> str:
        # Counted for the process and not for this end: two ends of one group would else share keys,
        # and an optimiser would read what another one's workers have said.
        _NUM_KEYS[self.group_name] += 1
        return f"algorithms: {self.group_name}, {_NUM_KEYS[self.group_name]}"

    def first_to_say(self, key: str, words: str) -> str:
        try:
            # Where a key is not there yet, a store sets it if it is expected to be empty, and in
            # any case it returns what it then holds: so of several workers at once one is first.
            return _get_default_store().compare_set(key, "", words).decode()
        except (RuntimeError, ValueError):
            # The store is gone, and with it what others have said.
            return words

    def _mark(self, tensor: Tensor) -> Mark:
        return mark(self.device or tensor.device)

    def _sum_(self, tensor: Tensor) -> None:
        assert tensor.is_contiguous(), "only dense messages are sent"
        with translated_errors(), self._sendable(tensor) as message:
            dist.all_reduce(message, group=self.group)

    def _short_mean_(self, tensor: Tensor) -> Tensor:
        # Each worker adds a share of all messages in 32 bits, in the order of ranks, and sends its
        # mean to all: as much as in a ring, where a backend would add in 16 bits.
        with translated_errors(), self._sendable(tensor) as message:
            missing = -message.numel() % self.world_size
            shares = torch.nn.functional.pad(message.reshape(-1), (0, missing))
            received = torch.empty_like(shares)
            means = torch.empty_like(shares)
            # As bytes: not every backend knows each type.
            dist.all_to_all_single(
                received.view(torch.uint8), shares.view(torch.uint8), group=self.group
            )
            # (workers, numbers of a share): row r came from rank r.
            exact = mean_in_rank_order(received.view(self.world_size, -1))
            share = exact.to(message.dtype)
            _all_gather(
                means.view(torch.uint8), share.view(torch.uint8), group=self.group
            )
            message.copy_(means[: message.numel()].view_as(message))
            rest = torch.zeros(self.world_size, share.numel(), device=message.device)
            rest[self.rank] = (share.float() - exact).mul_(self.world_size)
        return rest.view(-1)[: message.numel()].view_as(message).to(tensor.device)

    def _reduce_blocks(self, blocks: Tensor, add: Add) -> tuple[Tensor, Tensor]:
        (message,) = blocks.to(self.device)
        num_blocks, num_bytes = message.shape
        n = self.world_size
        shares = [share_of(range(rank, rank + 1), num_blocks, n) for rank in range(n)]
        counts = [share.stop - share.start for share in shares]
        count = counts[self.rank]
        received = message.new_empty(n * count, num_bytes)
        # (blocks, bytes): all shares again, each as its worker has made it.
        reduced = torch.empty_like(message)
        with translated_errors():
            dist.all_to_all_single(
                received, message, [count] * n, counts, group=self.group
            )
        to_all, rest = add(received.view(n, count, num_bytes).to(blocks.device))
        # Shares need not be equal, so this is no all-gather in the backend's sense.
        with translated_errors():
            copies = to_all.to(message.device).repeat(n, 1)
            dist.all_to_all_single(
                reduced, copies, counts, [count] * n, group=self.group
            )
        return reduced.to(blocks.device), rest

    @contextmanager
    def _sendable(self, tensor: Tensor) -> Iterator[Tensor]:
        """Yield `tensor`, or a copy on the backend's device, which at the end is copied back."""
        message = tensor.to(self.device)
        yield message
        if message is not tensor:
            tensor.copy_(message)

    def _gather(self, tensor: Tensor) -> Tensor:
        message = tensor.to(self.device)
        gathered = message.new_empty((self.world_size, *message.shape[1:]))
        with translated_errors():
            _all_gather(
                gathered.view(-1), message.contiguous().view(-1), group=self.group
            )
        return gathered.to(tensor.device)

    def _broadcast_(self, tensor: Tensor) -> None:
        with translated_errors(), self._sendable(tensor) as message:
            dist.broadcast(message, group=self.group, group_src=0)

    def _exchange(self, tensor: Tensor, mixing: Mixing) -> dict[int, Tensor]:
        message = tensor.to(self.device)[0].contiguous()
        received = {
            sender: torch.empty_like(message) for sender in mixing.senders[self.rank]
        }
        operations: list[tuple[Callable[..., Any], Tensor, int]] = []
        operations += [
            (dist.isend, message, receiver) for receiver in mixing.receivers[self.rank]
        ]
        operations += [
            (dist.irecv, buffer, sender) for sender, buffer in received.items()
        ]
        if not operations:  # a worker that nobody meets; torch refuses an empty batch
            return {}
        # At once, as in a ring of sends and receives one after another each would wait for the next.
        at_once = []
        for act, buffer, peer in operations:
            at_once.append(dist.P2POp(act, buffer, group=self.group, group_peer=peer))
        with translated_errors():
            for work in dist.batch_isend_irecv(at_once):
                work.wait()
        return {sender: buffer.to(tensor.device) for sender, buffer in received.items()}


def collectives_of(given: object, groups: Sequence[Mapping[str, Any]]) -> Collectives:
    """Return collectives from what a script gave: a group, a mesh, collectives, or None.

    Args:
        groups: an optimiser's.

    Raises:
        TypeError: it is none of these.
        ValueError: a mesh of several dimensions, a group or mesh without this process, or
            processes whose parameters are on the meta device.
        RuntimeError: see `default_collectives`.
    """
    collectives = (
        default_collectives(groups) if given is None else _as_collectives(given)
    )
    # Without processes it is a plan, which needs no numbers.
    if isinstance(collectives, ProcessGroupCollectives) and _on_meta(groups):
        raise ValueError(
            "the parameters are on the meta device, which holds no numbers to train or send; make "
            "the optimiser after to_empty() and the initialisation, or give "
            "collectives=SoloCollectives() where nothing is to be trained"
        )
    return collectives


def _as_collectives(given: object) -> Collectives:
    if isinstance(given, Collectives):
        return given
    if isinstance(given, DeviceMesh):
        return ProcessGroupCollectives(_group_of(given))
    # What torch gives processes outside a new group in its place.
    if given is dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError(
            "this process is not in the group that collectives= has; make the optimiser in the "
            "group's processes only, or a group for each process's own peers"
        )
    if isinstance(given, dist.ProcessGroup):
        return ProcessGroupCollectives(given)
    raise TypeError(
        "collectives must be a process group, a DeviceMesh of one dimension or Collectives, such as "
        f"ProcessGroupCollectives(group, overlap=True), not {given!r}"
    )


def _group_of(mesh: DeviceMesh) -> dist.ProcessGroup:
    """Return this process's group of a mesh of one dimension; ValueError if there is none."""
    if mesh.ndim != 1:
        names = ", ".join(map(repr, mesh.mesh_dim_names or ())) or "without names"
        raise ValueError(
            f"the mesh that collectives= has is of {mesh.ndim} dimensions ({names}); give the one "
            "across which workers are to talk, as in mesh['nodes'] or mesh.get_group(0)"
        )
    if mesh.get_coordinate() is None:
        raise ValueError(
            "this process is not in the mesh that collectives= has; make the optimiser in the "
            "mesh's processes only"
        )
    return mesh.get_group()


def default_collectives(groups: Sequence[Mapping[str, Any]]) -> Collectives:
    """Return the process group if there is one, else a group of one; `groups` are an optimiser's.

    It warns of a group of one that nobody asked for, but not where parameters have no memory, and
    this is only a plan.

    Raises:
        RuntimeError: several processes were started (`WORLD_SIZE` in the environment) and cannot
            talk to each other, and parameters have memory, so that this is not only a plan.
    """
    if dist.is_initialized():
        return ProcessGroupCollectives()
    num_processes = os.environ.get("WORLD_SIZE", "1")
    only_planned = _on_meta(groups)
    if num_processes not in ("", "1") and not only_planned:
        raise RuntimeError(
            f"WORLD_SIZE is {num_processes} in the environment, but there is no process group, so "
            "each process would train alone; call torch.distributed.init_process_group() before "
            "the optimiser is made, or give it collectives=SoloCollectives() if each is to be "
            "alone"
        )
    # Where torchrun starts one process, that it is alone is no surprise.
    if not only_planned and "WORLD_SIZE" not in os.environ:
        warn_script(
            "there is no process group, so this process trains alone; call "
            "torch.distributed.init_process_group() before the optimiser is made, or give "
            "collectives=SoloCollectives() if it is to be alone"
        )
    return SoloCollectives()


def _on_meta(groups: Sequence[Mapping[str, Any]]) -> bool:
    return any(parameter.is_meta for group in groups for parameter in group["params"])


def _twin(group: dist.ProcessGroup | None) -> dist.ProcessGroup:
    """Return a new group of the same workers, backend and time-out."""
    parent = group or dist.group.WORLD
    assert parent is not None
    backend = dist.get_backend(group)
    # A new group has the default time-out, whatever its parent's is; that is in the backend's
    # options, for which there is no public name.
    device = torch.device("cuda" if backend == "nccl" else "cpu")
    end = parent._get_backend(device)
    ranks = dist.get_process_group_ranks(parent)
    has_all = group is None
    with translated_errors(), nullcontext() if has_all else _named_by_members(ranks):
        twin = dist.new_group(
            ranks,
            timeout=getattr(getattr(end, "options", None), "_timeout", None),
            backend=backend,
            # In a group of some workers only, the others do not call this; torch would wait for
            # them otherwise.
            use_local_synchronization=not has_all,
        )
    assert isinstance(twin, dist.ProcessGroup)
    return twin


@contextmanager
def _named_by_members(ranks: Sequence[int]) -> Iterator[None]:
    """Let torch name a new group of these ranks by what they alone know.

    From torch 2.15 on it puts into the name how many groups a process has made. The other ranks do
    not count this one: at the next group of all they would wait under another name, for ever.
    """
    num_groups = _world.group_count
    _NUM_TWINS[*ranks] += 1
    _world.group_count = TWINS + _NUM_TWINS[*ranks]
    try:
        yield
    finally:
        _world.group_count = num_groups


@functools.cache
def _tell_others_at_the_end() -> None:
    """Have it told to the others what ends this process, once that was shown as ever."""
    atexit.register(_tell_end)


def _tell_end() -> None:
    # Python keeps here what nobody caught, and nothing where a script came to its end.
    error = getattr(sys, "last_value", None)
    ending = "came to the end of its script, or called sys.exit()"
    if error is not None:
        words = " ".join(f"{type(error).__name__}: {error}".split())
        ending = f"raised {words[:WORDS_LENGTH]}"
    # Only the first counts: the others' follow from it. Where all have come to their end, nobody
    # asks.
    with suppress(Exception):
        # By the store and no collective: whoever ends can wait for nobody.
        _get_default_store().compare_set(
            FIRST_FAILURE, "", f"rank {dist.get_rank()} {ending}"
        )


def _first_failure() -> str:
    """Return what a process has told, or nothing.

    It is asked for only where a collective has failed.
    """
    try:
        store = _get_default_store()
        # Checked first, since a store's `get` waits for a key that is not there, up to its
        # time-out.
        return store.get(FIRST_FAILURE).decode() if store.check([FIRST_FAILURE]) else ""
    except dist.DistError:
        return "rank 0 is gone, or whichever process kept the group's store; its own output says why"
    except (RuntimeError, ValueError):  # There is no default group any more.
        return ""


@contextmanager
def translated_errors() -> Iterator[None]:
    """Raise CollectiveError for whatever backends raise where a worker is lost or late.

    It names the rank and the exception that ended a process first, where that could be told. A
    collective's failure is told by where it arises. Too little memory is another matter.
    """
    try:
        yield
    except (CollectiveError, torch.OutOfMemoryError):
        raise
    # Backends raise plain RuntimeErrors; Python's own sockets and pipes, under a store, have errors
    # of their own.
    except (RuntimeError, ConnectionError, TimeoutError, EOFError) as error:
        reason = _first_failure() or _failure_in_words(error)
        raise CollectiveError(f"a collective failed: {reason}") from error


def _failure_in_words(error: Exception) -> str:
    """Return why a collective failed where no process has told."""
    said = str(error) or type(error).__name__
    if any(sign in said for sign in SIGNS_OF_AN_END):
        return (
            "a worker's process has ended and told nothing, as one that is killed (by SIGKILL, or "
            f"for its memory); its own output, or its machine's log, says which ({said})"
        )
    return said
