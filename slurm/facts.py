"""What an attempt's record says of the allocation: Slurm's ids, node names, GPUs, driver, topology."""

from __future__ import annotations

import os
import subprocess

import submitit

from slurm.allocation import Allocation

VARIABLES = (
    "SLURM_CLUSTER_NAME",
    "SLURM_JOB_ID",
    "SLURM_ARRAY_JOB_ID",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_RESTART_COUNT",
    "SLURM_JOB_PARTITION",
    "SLURM_JOB_ACCOUNT",
    "SLURM_JOB_NUM_NODES",
    "SLURM_NTASKS",
    "SLURM_CPUS_PER_TASK",
    "SLURM_GPUS_ON_NODE",
    "CUDA_VISIBLE_DEVICES",
)


def facts(allocation: Allocation) -> dict[str, str]:
    """The facts as rank 0 sees them on its node; what this machine cannot tell is left out."""
    found = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    found["job"] = allocation.job
    found["nodes"] = ",".join(submitit.JobEnvironment().hostnames)
    found["gpus"] = _said("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    found["topology"] = _said("nvidia-smi", "topo", "-m")
    return {name: text for name, text in found.items() if text}


def _said(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
