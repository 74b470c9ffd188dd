"""The lock between submitters: a file that says who has it and since when."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from slurm.errors import CampaignError


@contextmanager
def submit_lock(folder: Path) -> Iterator[None]:
    """Hold the experiment's lock. It works on network file systems too, where locks of files may not.

    Raises:
        CampaignError: somebody has it. It is never taken from them, since on another machine they may be alive.
    """
    path = folder / "submit.lock"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        raise CampaignError(_who(path)) from None
    with os.fdopen(descriptor, "w") as file:
        json.dump({"owner": owner(), "host": socket.gethostname(), "process": os.getpid(), "time": time.time()}, file)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def owner() -> str:
    """The user's name, or number where there is none."""
    with suppress(OSError, KeyError):
        import pwd

        return pwd.getpwuid(os.getuid()).pw_name
    return str(os.getuid())


def _who(path: Path) -> str:
    """A sentence on the lock's owner."""
    try:
        said = json.loads(path.read_text())
        who, host, process, age = said["owner"], said["host"], int(said["process"]), time.time() - said["time"]
    except (OSError, ValueError, LookupError, TypeError):
        return f"another submitter holds {path}, which does not say who; delete it if nobody is submitting"
    text = f"{who} on {host} (process {process}) has been submitting for {max(0, age):.0f} s and holds {path}"
    if host == socket.gethostname() and not Path(f"/proc/{process}").exists():
        return f"{text}; that process has ended: delete the file and call again"
    return f"{text}; wait, or delete the file if that process is gone"
