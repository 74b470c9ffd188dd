"""Starts worker processes that can meet, each with a pipe to whoever started them; hears, tells and ends them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any

from harness.workers.stops import left_to_the_launcher

PRELOADED = ("harness.workers.fork_server", "torch._dynamo")
"""What every worker needs; the last PyTorch would import, for a second, when it makes its first optimiser."""
EXIT_ORPHAN = 4
GRACE_SECONDS = 2.0
"""For the workers that a failed one leaves, to fail too, and say why."""
SIGNS_OF_A_LOST_PEER = ("a collective failed", "Connection", "gloo", "TCPStore", "recvValue", "reset by peer")
EARLY = "it ended early"


class WorkerError(RuntimeError):
    """A worker failed; the message is one sentence, with its rank and its last words."""


@dataclass(frozen=True)
class Worker:
    """What a process knows of its part.

    Attributes:
        init_method: PyTorch's, by which the workers of one start find each other.
        pipe: to whoever started them.
        stop_requested: whether SIGTERM has come; Ctrl-C is the affair of whoever started them.
    """

    rank: int
    world_size: int
    init_method: str
    pipe: Connection
    stop_requested: Callable[[], bool]


@dataclass(frozen=True)
class _LastWords:
    """Of a worker that failed."""

    words: str


@dataclass
class WorkerProcesses:
    """The processes of one start and this end of the pipe to each, by rank. Used by `with`, they are ended after it."""

    processes: list[BaseProcess]
    pipes: list[Connection]
    folder: tempfile.TemporaryDirectory[str] | None
    """In which they meet."""
    _last_words: dict[int, str] = field(default_factory=dict)

    def __enter__(self) -> WorkerProcesses:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.kill()
        self.close()

    def exit_codes(self) -> list[int | None]:
        """By rank; None for a process that is on."""
        return [process.exitcode for process in self.processes]

    def ask_to_stop(self) -> None:
        """A process that has just been made does not hear yet: it must be asked again."""
        for process in self.processes:
            if process.exitcode is None:
                process.terminate()

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()

    def close(self) -> None:
        """Give back what the processes, which have ended, leave here."""
        for pipe in self.pipes:
            pipe.close()
        if self.folder is not None:
            self.folder.cleanup()

    def tell(self, rank: int, what: object) -> None:
        """Send it to the worker; that one has ended is said when it is next heard."""
        with contextlib.suppress(BrokenPipeError):
            self.pipes[rank].send(what)

    def hear(self, rank: int, timeout_seconds: float | None = None) -> Any:
        """What the worker says next; at last it is what its work returned.

        Raises:
            WorkerError: one of them failed, or this one says nothing for so long.
        """
        pipe, deadline = self.pipes[rank], None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            on = [process.sentinel for process in self.processes if process.exitcode is None]
            ready = wait([pipe, *on], left)
            if any(self.exit_codes()):
                raise self._error()
            if pipe in ready:
                return self._received(rank)
            if not ready:
                raise WorkerError(f"worker {rank} did not answer in {timeout_seconds:g} s")

    def hear_all(self) -> list[Any]:
        """What each says next, by rank; see `hear`."""
        return [self.hear(rank) for rank in range(len(self.processes))]

    def _received(self, rank: int) -> Any:
        try:
            said = self.pipes[rank].recv()
        except (EOFError, ConnectionResetError):
            self._last_words[rank] = EARLY
            raise self._error() from None
        if isinstance(said, _LastWords):
            self._last_words[rank] = said.words
            raise self._error()
        return said

    def _error(self) -> WorkerError:
        """Who failed first, as far as that can be told: the others then say that they lost a connection."""
        deadline = time.monotonic() + GRACE_SECONDS
        while on := [process.sentinel for process in self.processes if process.exitcode is None]:
            if not wait(on, max(0.0, deadline - time.monotonic())):
                break
        for rank, code in enumerate(self.exit_codes()):
            with contextlib.suppress(EOFError, OSError):
                while self.pipes[rank].poll():
                    if isinstance(said := self.pipes[rank].recv(), _LastWords):
                        self._last_words[rank] = said.words
            if code and self._last_words.get(rank, EARLY) == EARLY:
                self._last_words[rank] = f"it ended with exit code {code}"
        lost = [any(sign in words for sign in SIGNS_OF_A_LOST_PEER) for words in self._last_words.values()]
        _, rank = min(zip(lost, self._last_words, strict=True))
        return WorkerError(f"worker {rank} failed: {self._last_words[rank]}")


def start_workers(
    work: Callable[..., object], arguments: Sequence[tuple[Any, ...]], preload: Sequence[str] = ()
) -> WorkerProcesses:
    """Start a process for each of `arguments`, forked from one that has torch loaded: isolated, and there at once.

    Args:
        work: of a module, so that it can be sent; called as `work(worker, *arguments[rank])`. What it prints is dropped
            but for what goes to standard error.
        preload: modules to be loaded before the first process of this program is forked, besides that of `work`.
    """
    prepare_processes()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED, work.__module__, *preload])
    started = WorkerProcesses([], [], tempfile.TemporaryDirectory(prefix="cser-workers-"))
    assert started.folder is not None
    place = len(arguments), f"file://{started.folder.name}/rendezvous"
    for rank, own in enumerate(arguments):
        ours, theirs = context.Pipe()
        process = context.Process(target=_be, args=(work, rank, *place, theirs, *own))
        process.start()
        theirs.close()
        started.processes.append(process)
        started.pipes.append(ours)
    return started


def prepare_processes() -> None:
    """Set, where the user has not, what the processes that will be started must find in their environment."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # One arena for all threads: workers then hand each other memory that is still in the core's cache.
    os.environ.setdefault("MALLOC_ARENA_MAX", "1")


def _be(
    work: Callable[..., object], rank: int, world_size: int, init_method: str, pipe: Connection, *arguments: object
) -> None:
    """What a worker's process does: its work, whose result or failure it says last. It dies with who started it."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    notice = left_to_the_launcher()
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)  # gloo prints there
    try:
        _say(pipe, work(Worker(rank, world_size, init_method, pipe, notice.stop_requested), *arguments))
    except Exception as error:
        words = " ".join(str(error).split())
        if not words or not isinstance(error, RuntimeError | OSError | ValueError):
            traceback.print_exc()
            words = f"{type(error).__name__}: {words}"
        _say(pipe, _LastWords(words))
        sys.exit(1)


def _say(pipe: Connection, last: object) -> None:
    with contextlib.suppress(BrokenPipeError):  # whoever started this one has heard enough
        pipe.send(last)


def _die_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(EXIT_ORPHAN)
