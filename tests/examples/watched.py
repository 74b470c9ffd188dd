"""An example as it stands, watched: what each rank's consensus was; and rank 1 is killed where that
is asked for.

    torchrun ... tests/examples/watched.py LOG KILLED_AFTER SCRIPT ARGUMENTS...

For each `consensus()` a line goes to LOG, with the rank in its name: digests of what this worker
saw inside, and of its own state afterwards. With KILLED_AFTER of 2, rank 1 kills itself after the
second, before anything of it is saved.
"""

import hashlib
import json
import os
import runpy
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from cser_bench.algorithms import DistributedOptimizer

RANK = os.environ["RANK"]
LOG = f"{sys.argv[1]}-{RANK}.jsonl"
OTHERS = f"{sys.argv[1]}-0.jsonl"
KILLED_AFTER = int(sys.argv[2])
consensus = DistributedOptimizer.consensus
seen: list[str] = []


def digest(state: Any) -> str:
    """Return a digest of numbers and names alone: pickled bytes also tell which equal objects are one."""
    return hashlib.sha256(
        json.dumps(state, sort_keys=True, default=bits).encode()
    ).hexdigest()


def bits(tensor: torch.Tensor) -> list[Any]:
    """Dtype, shape and digest of a tensor, as written numbers of it take most of a test's time."""
    flat = tensor.detach().contiguous().reshape(-1)
    as_bytes = flat.view(torch.uint8).numpy()
    digest_of_bits = hashlib.sha256(as_bytes).hexdigest()
    return [str(tensor.dtype), list(tensor.shape), digest_of_bits]


@contextmanager
def watched(self: DistributedOptimizer, *given: Any, **named: Any) -> Iterator[None]:
    with consensus(self, *given, **named):
        averages = named.get("averages", [])
        modules = [*given[:1], *averages]
        inside = digest(
            [self.flat.parameters, *(module.state_dict() for module in modules)]
        )
        yield
    seen.append(
        json.dumps(
            {"step": self.num_steps, "inside": inside, "own": digest(self.state_dict())}
        )
        + "\n"
    )
    with open(LOG, "w") as log:
        log.writelines(seen)
    if len(seen) == KILLED_AFTER and RANK == "1":
        while (
            len(Path(OTHERS).read_text().splitlines()) < KILLED_AFTER
        ):  # torchrun will end rank 0 as well
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)


DistributedOptimizer.consensus = watched  # type: ignore[method-assign]
sys.argv = sys.argv[3:]
runpy.run_path(sys.argv[0], run_name="__main__")
