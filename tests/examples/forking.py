"""Workers of a script, forked from one process that has imported the frameworks once.

They find what torchrun gives its workers in their environment. One that ends otherwise than well ends
the others. Importing the frameworks takes longer than all else that the examples do.

    python tests/examples/forking.py

reads a line for each script, a JSON object with `folder` (to run in), `words` (the script and its
arguments) and `output` (a file for all that they print). It answers by a line with their exit statuses.
"""

import gc
import importlib
import importlib.util
import json
import os
import runpy
import signal
import socket
import sys
import warnings
from pathlib import Path
from typing import Any

NUM_WORKERS = 2
MODULES = {
    "torch": ["cser_bench.algorithms", "torch.distributed.fsdp"],
    "accelerate": ["accelerate"],
    "timm": ["timm", "timm.utils", "timm.optim"],
    "lightning": ["lightning.pytorch", "lightning.fabric"],
    "transformers": ["transformers.trainer", "transformers.models.gpt2.modeling_gpt2"],
}
"""What is imported beforehand of each framework that is installed."""


def environment(rank: int, port: int) -> dict[str, str]:
    """What torchrun sets on one machine, but for the address of a store of its own."""
    of_worker = ("RANK", "LOCAL_RANK", "ROLE_RANK")
    of_all = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "ROLE_WORLD_SIZE")
    others = {
        "GROUP_RANK": "0",
        "GROUP_WORLD_SIZE": "1",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "none",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_MAX_RESTARTS": "0",
    }
    return (
        dict.fromkeys(of_worker, str(rank))
        | dict.fromkeys(of_all, str(NUM_WORKERS))
        | others
    )


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return int(found.getsockname()[1])


def statuses_of(workers: list[int]) -> list[int]:
    """The exit statuses, which are negative signals, of workers that end together."""
    statuses: dict[int, int] = {}
    while len(statuses) < len(workers):
        worker, status = os.wait()
        statuses[worker] = os.waitstatus_to_exitcode(status)
        if statuses[worker]:
            for other in set(workers) - statuses.keys():
                os.kill(other, signal.SIGKILL)
    return [statuses[worker] for worker in workers]


def become(request: dict[str, Any], rank: int, port: int) -> None:
    """Make this process a worker, but for running the script."""
    os.chdir(request["folder"])
    os.environ.update(environment(rank, port))
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for standard in (1, 2):
        os.dup2(output, standard)
    sys.argv = request["words"]
    sys.path[0] = str(Path(sys.argv[0]).parent)


def next_script() -> str | None:
    """Serve until there is no more to do, which is None; in a worker the script to run."""
    for line in sys.stdin:
        request = json.loads(line)
        port = free_port()
        workers = []
        for rank in range(NUM_WORKERS):
            worker = os.fork()
            if worker == 0:
                become(request, rank, port)
                return str(sys.argv[0])
            workers.append(worker)
        print(json.dumps(statuses_of(workers)), flush=True)
    return None


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for framework, modules in MODULES.items():
            if importlib.util.find_spec(framework):
                for module in modules:
                    importlib.import_module(module)
    # An interpreter that ends visits all objects but frozen ones. In a fork each visit copies a page
    # of the frameworks, and together they took longer than the script.
    gc.collect()
    gc.freeze()
    # Here and not deeper, so that a worker ends as an interpreter does that ran the script.
    if script := next_script():
        runpy.run_path(script, run_name="__main__")
