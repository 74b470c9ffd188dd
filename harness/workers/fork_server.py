"""Imported by the process that runs are forked from, and by no other: signals to a whole group must not end it.

It ends with its launcher. A run's process decides for itself what a signal means to it.
"""

from __future__ import annotations

import signal

signal.signal(signal.SIGTERM, signal.SIG_IGN)
