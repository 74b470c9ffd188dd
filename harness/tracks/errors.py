"""What is said of an entry that is refused."""

from __future__ import annotations


class EntryError(RuntimeError):
    """An entry breaks a rule or is not what it says; the message is one sentence."""

    exit_code = 1
