"""Does requests in a network lab: starts their workers, and answers what rank 0 asks."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterable

from harness.lab.inside import Namespaces, start_inside
from harness.speed.layers import layers_of
from harness.speed.questions import NEXT
from harness.speed.request import Request, TimingRequest
from harness.speed.worker import work_in_lab

Answers = dict[str, Callable[[], object]]


def run_in_lab(requests: Iterable[Request], network: Namespaces, answers: Answers | None = None) -> None:
    """Do the requests one after the other with the same workers, since to start eight takes a while.

    Each is taken from the iterator when the one before it is done, so a generator can change the lab in between.

    Args:
        answers: to other questions of rank 0 than that for the next request; see `harness.speed.questions`.

    Raises:
        WorkerError: a worker failed; the others are ended. Records of requests that were done are there.
    """
    coming = map(_ready, requests)
    first = next(coming, None)
    if first is None:
        return
    own: Answers = {NEXT: lambda: next(coming, None)}
    # Not a copy: a generator may change what is answered, too.
    known = ChainMap(own, {} if answers is None else answers)
    with start_inside(network, work_in_lab, [(first,)] * first.fabric.num_workers) as workers:
        while (question := workers.hear(0)) is not None:
            workers.tell(0, known[question]())
        for rank in range(1, first.fabric.num_workers):
            workers.hear(rank)


def _ready(request: Request) -> Request:
    ready: dict[str, object] = {"output": request.output.absolute()}
    if isinstance(request, TimingRequest) and request.layers is None:
        ready["layers"] = layers_of(request.workload.name)
    return request.model_copy(update=ready)
