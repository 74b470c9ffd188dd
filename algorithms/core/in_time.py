"""A time limit for calls that have none, as a store's when the process that keeps it hangs."""

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import TypeVar

T = TypeVar("T")


def in_time(act: Callable[[], T], seconds: float) -> T:
    """Do it, and return its result or raise its error.

    Raises:
        TimeoutError: it is not done by then; the thread that is at it stays behind.
    """
    outcome: SimpleQueue[tuple[T, None] | tuple[None, Exception]] = SimpleQueue()

    def do() -> None:
        try:
            outcome.put((act(), None))
        except Exception as error:
            outcome.put((None, error))

    # A daemon: what hangs must not keep the process.
    threading.Thread(target=do, daemon=True).start()
    try:
        result, error = outcome.get(timeout=seconds)
    except Empty:
        raise TimeoutError(f"no answer in {seconds:g} s") from None
    if error is not None:
        raise error
    return result  # type: ignore[return-value]
