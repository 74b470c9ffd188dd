"""How a command begins and ends: away from the current folder, and with an exit code.

What went wrong is said in one sentence.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from cser_bench.harness.errors import UsageError
from cser_bench.harness.places import OURS

FAILURE, BROKEN_PIPE, INTERRUPTED = 1, 141, 130
INTERRUPTION = (
    "interrupted: what was recorded is kept; the same command goes on from here"
)


LONG_WORD = re.compile(r"[^\s/'\"]{256,}")
"""What cannot be a file's name, which has 255 bytes at most: a slip, of which the begin tells
enough."""


def complain(error: object, code: int) -> int:
    """Print what is wrong, with words that are too long cut short, and return the exit code."""
    said = LONG_WORD.sub(
        lambda word: f"{word[0][:40]}... ({len(word[0]):,} characters)", str(error)
    )
    print(f"error: {said}", file=sys.stderr)
    return code


def end_of(command: Callable[[], int]) -> int:
    """Do the command and return its exit code.

    It is 2 for a user's mistake, 1 for a failure, 128 + n for signal n. An exception whose class
    has an `exit_code` says in a sentence what people need to know; any other is a bug. The command
    imports what it needs itself, so that Ctrl-C is heard from the first moment.
    """
    try:
        code = command()
        # Here, so that a reader who has gone is noticed below, and not when Python ends.
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # as in `plan | head`: whoever read has seen enough
        # Python flushes once more as it ends, and that would fail as well.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return BROKEN_PIPE
    # After BrokenPipeError, which is one of these.
    except OSError as error:
        where = f" at {error.filename}" if error.filename else ""
        said = f"{error.strerror or error or type(error).__name__}{where}"
        if error.errno == errno.ENAMETOOLONG:
            return complain(f"{said}; give a shorter name", UsageError.exit_code)
        return complain(
            f"{said}: what was recorded is kept; mend this and call again", FAILURE
        )
    except ModuleNotFoundError as error:
        # A module of our own that is missing is a bug, and its trace is wanted.
        if OURS.joinpath(str(error.name).partition(".")[0]).exists():
            raise
        # Only a checkout can be installed from, and an installed program does not know where one is.
        is_checkout = (OURS / "pyproject.toml").exists()
        source = str(OURS) if is_checkout else "PATH-TO-THE-CHECKOUT"
        return complain(
            f"{error.name} is not installed; pip install '{source}[harness]' has all that is needed",
            FAILURE,
        )
    except KeyboardInterrupt as stop:
        return interrupted(stop)
    except Exception as error:
        if not hasattr(error, "exit_code"):
            raise
        return complain(error, int(error.exit_code))


def interrupted(stop: KeyboardInterrupt) -> int:
    """Say that the command was interrupted, and return the exit code."""
    print(INTERRUPTION, file=sys.stderr)
    return int(getattr(stop, "exit_code", INTERRUPTED))


@contextmanager
def loading() -> Iterator[None]:
    """Have Ctrl-C end the process at once while modules are loaded and nothing is written.

    Some libraries drop every exception that comes while they are loaded, KeyboardInterrupt too, and
    all would go on.
    """
    is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not is_default or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, _end_at_once)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end_at_once(number: int, frame: FrameType | None) -> None:
    # No print: where the signal interrupts one, a second raises.
    os.write(sys.stderr.fileno(), f"{INTERRUPTION}\n".encode())
    # At once: libraries that are half loaded may not survive a regular end.
    os._exit(INTERRUPTED)


def program() -> str:
    """Return what was typed to start this command.

    That is the installed command's name, or else `python -m harness`.
    """
    name = Path(sys.argv[0]).name
    return name if name.startswith("cser-") else "python -m harness"


def leave_out_current_folder() -> None:
    """Take the current folder off the path, unless our packages lie there.

    Processes that we start never look there.
    """
    if (
        sys.path and sys.path[0] and Path(sys.path[0]).resolve() == Path.cwd()
    ):  # put there by `python -m`
        if Path.cwd() == OURS:
            # Processes that we start would else not find our packages, by what is set below.
            before = os.environ.get("PYTHONPATH")
            os.environ["PYTHONPATH"] = (
                f"{OURS}{os.pathsep}{before}" if before else str(OURS)
            )
        else:
            del sys.path[0]
    os.environ["PYTHONSAFEPATH"] = "1"
