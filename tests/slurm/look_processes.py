"""Started by tests: one process of a preflight job, without Slurm; what Slurm would say is in the environment."""

from __future__ import annotations

import dataclasses
import os
import pickle
import sys
from pathlib import Path

from harness.tasks.imagenet import ImageNet
from slurm import fabric, look


def main() -> None:
    """Arguments: a pickled Look. LOOK_MACHINE and LOOK_ADDRESS, where they are set, stand for this process's place."""
    task = pickle.loads(Path(sys.argv[1]).read_bytes())
    look.PATIENCE_SECONDS = look.NETWORK_SECONDS = 600.0  # on a busy machine
    look.READING_SECONDS = 0.3  # type: ignore[attr-defined]
    here = fabric.this_place

    def elsewhere(device: str) -> fabric.Place:
        machine, address = os.environ.get("LOOK_MACHINE"), os.environ.get("LOOK_ADDRESS")
        place = dataclasses.replace(here(device), host=f"node{os.environ['SLURM_PROCID']}")
        return dataclasses.replace(place, machine=machine or place.machine, address=address or place.address)

    fabric.this_place = elsewhere
    if os.environ.get("LOOK_MINIATURE"):
        import harness.tasks.imagenet as module

        module.TASK = ImageNet(num_train=24, num_test=12, num_classes=3, side=16, resize=20)
    look.look(task)


if __name__ == "__main__":
    main()
