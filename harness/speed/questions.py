"""What rank 0 asks of whoever started the workers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch.distributed as dist

from harness.workers.process_group import from_rank_0
from harness.workers.processes import Worker

NEXT = "next request?"
"""The next request, when the network is ready for it, or None."""
LIFT, LIMIT = "lift the limits?", "limit again?"
"""Nothing; the links are then as fast as can be, or as the request has them."""

Ask = Callable[[Any], Any]


def asking(worker: Worker) -> Ask:
    """Gives the answer to a question, on all workers; all must call."""
    return partial(_ask, worker)


def _ask(worker: Worker, question: Any) -> Any:
    dist.barrier()
    answer = None
    if worker.rank == 0:
        worker.pipe.send(question)
        answer = worker.pipe.recv()
    return from_rank_0(answer)
