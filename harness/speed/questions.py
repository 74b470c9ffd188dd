"""What rank 0 asks of whoever started the workers, a line on its output for a line of JSON on its input."""

from __future__ import annotations

import json
import sys
from typing import Any

import torch.distributed as dist

NEXT = "next request?"
"""The file of the next request, when the network is ready for it, or null."""
LIFT, LIMIT = "lift the limits?", "limit again?"
"""Nothing; the links are then as fast as can be, or as the request has them."""


def ask(question: str) -> Any:
    """The answer, on all workers; all must call."""
    answer = [None]
    dist.barrier()
    if dist.get_rank() == 0:
        print(question, flush=True)
        answer = [json.loads(sys.stdin.readline())]
    dist.broadcast_object_list(answer)
    return answer[0]
