"""What the process that runs are forked from imports, and no other.

Signals to a whole group must not end it.

It ends with its launcher, which keeps these signals from it until they are ignored here, and which
hears Ctrl-C itself. A run's process decides for itself what a signal means to it.
"""

from __future__ import annotations

import signal

IGNORED = (signal.SIGINT, signal.SIGTERM)

for number in IGNORED:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED)
