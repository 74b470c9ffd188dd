"""How a command of the report ends: its exit status, and what went wrong as one sentence on standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable

from harness.records.store import RecordError


def end_of(write: Callable[[], str], mistake: type[Exception]) -> int:
    """Write, and say what was written; exit status 0, 1 for a failure, 2 for a user's `mistake`, 130 after Ctrl-C."""
    try:
        said = write()
    except (mistake, RecordError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, mistake) else 1
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        print(f"error: cannot read or write {what}; check the folder or choose another --output", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: the same command writes the report anew", file=sys.stderr)
        return 130
    print(said)
    return 0
