"""The error that ends a command of campaigns."""

from __future__ import annotations


class CampaignError(RuntimeError):
    """The command cannot go on, through no mistake in how it was called; the message is one sentence for the user."""
