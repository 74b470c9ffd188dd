"""What commands of all rooms raise for a user's mistake."""

from __future__ import annotations


class UsageError(ValueError):
    """The command cannot be used as given; the message is one sentence for the user."""

    exit_code = 2
