"""What rank 0 asks of whoever started the workers, a line on its output for a line of JSON on its input."""

from __future__ import annotations

import json
import sys
from typing import Any

import torch.distributed as dist

BYTES_SENT = "bytes sent?"
"""The counters of the machines' links, a list."""
NEXT = "next request?"
"""Nothing; the answer comes when the network is ready for the next request."""


def ask(question: str) -> Any:
    """The answer on rank 0, None on the others; all workers wait for it, and must call."""
    dist.barrier()
    answer = None
    if dist.get_rank() == 0:
        print(question, flush=True)
        answer = json.loads(sys.stdin.readline())
    dist.barrier()
    return answer
