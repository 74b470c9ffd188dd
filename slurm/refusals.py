"""What sbatch says when it refuses a job, and which field of the profile it means."""

from __future__ import annotations

FIELDS = (
    ("accounting/qos policy", ("qos", "account", "nodes", "time_limit_minutes")),
    ("qosmaxwall", ("time_limit_minutes", "qos")),
    ("account", ("account", "partition")),
    ("partition", ("partition",)),
    ("qos", ("qos",)),
    ("feature specification", ("constraint",)),
    ("generic resource", ("gpus_per_node", "gpu_type", "gpu_request")),
    ("gres", ("gpus_per_node", "gpu_type", "gpu_request")),
    ("gpus-per-node", ("gpu_request",)),
    ("memory specification", ("memory_gb",)),
    ("time limit", ("time_limit_minutes",)),
    ("node count specification", ("nodes",)),
    ("more processors requested", ("cpus_per_worker", "workers_per_node")),
    ("cpu count", ("cpus_per_worker", "workers_per_node")),
    (
        "node configuration is not available",
        ("nodes", "gpus_per_node", "cpus_per_worker", "memory_gb", "constraint"),
    ),
    ("job array specification", ()),
    ("option", ("extra_sbatch",)),
)
"""Part of a message, and the fields that bring it about."""

ADVICE = {
    "job array specification": "the cluster takes no arrays of so many tasks (MaxArraySize); give the experiment fewer "
    "seeds or rows",
    "unable to contact slurm controller": "Slurm is not up, or SLURM_CONF does not say where it is",
}


def explain_refusal(message: str, cluster: str) -> str:
    """sbatch's message, and where it can be told the fields of the profile to look at."""
    said = " ".join(line.removeprefix("sbatch: ").removeprefix("error: ") for line in message.splitlines() if line)
    low = said.lower()
    for part, advice in ADVICE.items():
        if part in low:
            return f"sbatch refused: {said}; {advice}"
    for part, fields in FIELDS:
        if part in low and fields:
            return f"sbatch refused: {said}; look at {', '.join(fields)} in the profile {cluster}"
    return f"sbatch refused: {said}"
