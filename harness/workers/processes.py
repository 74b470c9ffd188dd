"""Worker processes that can meet, each with a pipe to the starter, and the signals that end them.

Ctrl-C and SIGTERM: the first asks the runs to save their state and stop, the second ends them at
once.
"""

from __future__ import annotations

import contextlib
import logging
import math
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

from cser_bench.harness.workers.temporary import own_folder

if TYPE_CHECKING:
    from torch.multiprocessing.spawn import ProcessContext

PRELOADED = ("cser_bench.harness.workers.fork_server", "torch._dynamo")
"""Modules that every worker needs; PyTorch would import the last one, in a second, when it makes its
first optimiser."""
EXIT_ORPHAN = 4
LAUNCHER_SECONDS = 0.5
"""Between two looks at whether torchrun is still there."""
POLL_SECONDS = 0.1
JOIN_GRACE_SECONDS = 1.0
"""Seconds for the other workers to end by themselves after one has failed: torch then ends them."""
END_SECONDS = 30.0
"""Seconds for a process to end after its last message."""


class WorkerError(RuntimeError):
    """A worker failed; the message is one sentence, with its rank and its last words."""

    exit_code = 1


@dataclass(frozen=True)
class Worker:
    """What a worker process is given.

    Attributes:
        init_method: PyTorch's, by which the workers of one start find each other.
        pipe: to the process that started them.
        stop_requested: returns whether SIGTERM has come; the starter handles Ctrl-C.
    """

    rank: int
    world_size: int
    init_method: str
    pipe: Connection
    stop_requested: Callable[[], bool]


@dataclass(frozen=True)
class WorkerProcesses:
    """The processes of one start, the pipe to each by rank, and the folder where they meet.

    Leaving its `with` ends the processes.
    """

    context: ProcessContext
    pipes: Sequence[Connection]
    folder: tempfile.TemporaryDirectory[str]

    def __enter__(self) -> WorkerProcesses:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: object,
        trace: TracebackType | None,
    ) -> None:
        self.kill()
        self.close()

    def exit_codes(self) -> list[int | None]:
        """Return exit codes by rank; None for a process that is still running."""
        return [process.exitcode for process in self.context.processes]

    def ask_to_stop(self) -> None:
        """Ask each process to stop; one that has just been made must be asked again."""
        for process in self.context.processes:
            if process.exitcode is None:
                process.terminate()

    def kill(self) -> None:
        for process in self.context.processes:
            process.kill()
        # Callers read exit codes next, and a process that has none yet would pass for a success.
        for process in self.context.processes:
            process.join()

    def close(self) -> None:
        """Close the pipes and remove the files that the ended processes leave."""
        for pipe in self.pipes:
            pipe.close()
        self.folder.cleanup()
        # torch leaves a failed worker's error file behind.
        for file in self.context.error_files:
            Path(file).unlink(missing_ok=True)

    def tell(self, rank: int, what: object) -> None:
        """Send a message to the worker; a dead worker is reported by the next `hear`."""
        with contextlib.suppress(BrokenPipeError):
            self.pipes[rank].send(what)

    def hear(self, rank: int, timeout_seconds: float = math.inf) -> Any:
        """Return the worker's next message; the last one is what its work returned.

        Raises WorkerError: a worker failed, or this one is silent.
        """
        # By a clock that never goes back.
        deadline = time.monotonic() + timeout_seconds
        # In short waits: a worker that waits for a failed one sends nothing, and does not end.
        while not self.pipes[rank].poll(POLL_SECONDS):
            self._raise_if_failed()
            if time.monotonic() > deadline:
                raise WorkerError(
                    f"worker {rank} did not answer in {timeout_seconds:g} s"
                )
        try:
            return self.pipes[rank].recv()
        # The pipe is a socket, which is reset if the worker ended without reading our message.
        except (EOFError, ConnectionResetError):
            self.context.processes[rank].join(END_SECONDS)
            # The end of a process that was just joined may not be seen at once.
            for _ in self.pipes:
                self._raise_if_failed(POLL_SECONDS)
            raise WorkerError(f"worker {rank} failed: it ended early") from None

    def _raise_if_failed(self, wait_seconds: float = 0.0) -> None:
        # Imported here, as torch takes its time to load.
        from torch.multiprocessing.spawn import ProcessException

        try:
            # It raises for the first worker that failed, and ends the others after their time of
            # grace.
            self.context.join(wait_seconds, JOIN_GRACE_SECONDS)
        except ProcessException as error:
            # torch's message is the worker's whole traceback, which ends with the error's words.
            # For a worker that was killed it is one sentence, which stays as it is.
            words = str(error).rpartition(f"{WorkerError.__name__}: ")[2].strip()
            raise WorkerError(f"worker {error.error_index} failed: {words}") from None

    def hear_all(self) -> list[Any]:
        """Return each worker's next message, by rank; see `hear`."""
        return [self.hear(rank) for rank in range(len(self.pipes))]


def start_workers(
    work: Callable[..., object],
    arguments: Sequence[tuple[Any, ...]],
    preload: Sequence[str] = (),
) -> WorkerProcesses:
    """Start a process for each of `arguments`, forked from one that has torch loaded.

    Args:
        work: a module's function, so that it can be sent; called as `work(worker,
            *arguments[rank])`. What it prints is dropped, except on standard error.
        preload: modules to load before the first process of this program is forked, in addition to
            that of `work`.
    """
    from torch.multiprocessing.spawn import start_processes

    # One arena for all threads: workers then hand each other memory that is still in the core's
    # cache. Both variables are read when a process begins, so the fork server must have them.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("MALLOC_ARENA_MAX", "1")
    # It logs a line for each process that it ends.
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    place = own_folder()
    _start_fork_server([*PRELOADED, work.__module__, *preload])
    folder = tempfile.TemporaryDirectory(dir=place)
    # An end for us and an end for the worker, by rank.
    ours, theirs = zip(*(multiprocessing.Pipe() for _ in arguments), strict=True)
    # A file and no port, which another program could take between its choice and its use.
    given = work, f"file://{folder.name}/rendezvous", theirs, arguments
    context = start_processes(
        _be, given, len(arguments), join=False, start_method="forkserver"
    )  # type: ignore[no-untyped-call]
    # Otherwise a worker's end would stay open here, and the end of its pipe would never be seen.
    for pipe in theirs:
        pipe.close()
    return WorkerProcesses(context, ours, folder)


def _start_fork_server(preload: Sequence[str]) -> None:
    """Start the process that workers are forked from, unless it exists.

    Ctrl-C, which it receives too, must not end it. It inherits a mask that blocks signals, until
    `fork_server`, the first module that it loads, ignores them.
    """
    # Counts only until the server runs: workers that are started later are forked with the first
    # ones' modules.
    multiprocessing.get_context("forkserver").set_forkserver_preload(list(preload))
    # The fork server's start would start this one first, and Python unblocks both signals when that
    # is done: the server would be made with neither of them blocked.
    resource_tracker.ensure_running()
    # A blocked signal waits. Here it is heard after the `finally`, in the server it is ignored by
    # then.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _be(
    rank: int,
    work: Callable[..., object],
    init_method: str,
    pipes: Sequence[Connection],
    arguments: Sequence[tuple[Any, ...]],
) -> None:
    """Run a worker's work and send its result; the process dies with the one that started it."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    # torch has the kernel send SIGINT when the parent dies. But the parent is the fork server, and
    # SIGINT is ignored below.
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    flag = StopFlag()
    # A terminal sends Ctrl-C to the whole group: the starter hears it too, and asks by SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, flag.note)
    # Each worker gets all pipes. One that it kept open would hide the end of another worker.
    for pipe in pipes[:rank] + pipes[rank + 1 :]:  # type: ignore[operator]
        pipe.close()
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)  # gloo prints there
    try:
        last = work(
            Worker(rank, len(pipes), init_method, pipes[rank], flag.stop_requested),
            *arguments[rank],
        )
    except Exception as error:
        # One line, as it becomes part of a sentence.
        words = " ".join(str(error).split())
        if not words or not isinstance(error, RuntimeError | OSError | ValueError):
            traceback.print_exc()
            words = f"{type(error).__name__}: {words}"
        raise WorkerError(words) from None
    # Whoever started this one has heard enough
    with contextlib.suppress(BrokenPipeError):
        pipes[rank].send(last)


def _die_with(parent: BaseProcess) -> None:
    parent.join()
    # sys.exit would end this thread alone.
    os._exit(EXIT_ORPHAN)


def end_process(code: int) -> NoReturn:
    """End this process with an exit code, at once where its process group still stands.

    A worker that failed leaves its group as it is, since its end would wait for the peers. The
    group's threads abort Python's own end at times, and the exit status is then -6.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def stop_with_launcher() -> None:
    """Have this process asked to stop, by SIGTERM, when the process that started it has ended.

    torchrun that is killed tells its workers nothing, and they would train on.
    """
    launcher = os.getppid()

    def watch() -> None:
        # An orphan gets another parent: there is no signal for that, so it is looked for.
        while os.getppid() == launcher:
            time.sleep(LAUNCHER_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    # A daemon: it must not keep a process alive whose work is done.
    threading.Thread(target=watch, daemon=True).start()


class Interrupted(KeyboardInterrupt):
    """A signal ended the command, by way of the runs' checkpoints or not."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        # As shells report a command that a signal ended.
        self.exit_code = 128 + number


class StopFlag:
    """Whether a signal to stop has come.

    `second_ends`: whether another one raises Interrupted at once.
    """

    def __init__(self, second_ends: bool = False) -> None:
        self.number: int | None = None
        self._second_ends = second_ends

    def stop_requested(self) -> bool:
        return self.number is not None

    def note(self, number: int, frame: FrameType | None) -> None:
        """Note a signal, as its handler."""
        if self._second_ends:
            self.raise_if_asked()
        # The exit code tells of the first.
        self.number = self.number or number

    def raise_if_asked(self) -> None:
        """Raise Interrupted where a signal has come."""
        if self.number is not None:
            raise Interrupted(self.number)


@contextmanager
def noticed(second_ends: bool = True) -> Iterator[StopFlag]:
    """Have the main thread only note the first Ctrl-C or SIGTERM.

    The second raises Interrupted.

    Not under torchrun, where one Ctrl-C comes twice: from the terminal and from torchrun, which
    ends those that stay.
    """
    flag, before = StopFlag(second_ends), {}
    # Python sets handlers in the main thread alone; elsewhere the flag stays down.
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if (
                signal.getsignal(number) != signal.SIG_IGN
            ):  # as where a shell put the command into the background
                before[number] = signal.signal(number, flag.note)
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
