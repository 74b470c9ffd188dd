"""Started by tests: one process of a preflight job, without Slurm; what Slurm would say is in the environment."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path

from harness.tasks.imagenet import ImageNet
from slurm import job as preflight


def main() -> None:
    """Arguments: a pickled PreflightTask."""
    task = pickle.loads(Path(sys.argv[1]).read_bytes())
    preflight.PATIENCE_SECONDS = 600.0  # on a busy machine
    preflight.on_one_machine.READING_SECONDS = 0.3
    if os.environ.get("TEST_MINIATURE"):
        import harness.tasks.imagenet as module

        module.TASK = ImageNet(num_train=24, num_test=12, num_classes=3, side=16, resize=20)
    preflight.preflight(task)


if __name__ == "__main__":
    main()
