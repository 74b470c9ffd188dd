"""A campaign's status as text for people and as JSON for machines."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from tabulate import tabulate

from slurm.status import CampaignStatus, RunStatus


def as_json(status: CampaignStatus) -> dict[str, Any]:
    """For machines."""
    return asdict(status) | {"totals": status.totals}


def as_text(status: CampaignStatus) -> str:
    """For people: a line per run that is not simply done or missing, and totals."""
    lines = [status.title]
    shown = [run for run in status.runs if run.state not in ("done", "missing") or run.detail]
    table = [[run.row, run.seed, run.state, run.job, _progress(run), _why(run)] for run in shown]
    if table:
        lines.append(tabulate(table, ["row", "seed", "state", "job", "progress", ""], disable_numparse=True))
    totals = ", ".join(f"{count} {state}" for state, count in status.totals.items() if count)
    unit = "GPU" if status.device == "cuda" else "worker"
    left = "unknown" if status.worker_hours_left is None else f"about {status.worker_hours_left:,.1f}"
    lines.append(f"{totals}; {unit}-hours: {status.worker_hours_spent:,.1f} spent, {left} left")
    if not status.queue_answers:
        lines.append("squeue does not answer: states are what the records say")
    return "\n".join(lines)


def _progress(run: RunStatus) -> str:
    if run.epoch is None:
        return ""
    left = "?" if run.seconds_left is None else f"{run.seconds_left / 60:,.0f} min"
    return f"epoch {run.epoch:.2f}, {run.images_per_second:,.0f} samples/s, {left} left"


def _why(run: RunStatus) -> str:
    log = f" ({run.log})" if run.log and run.state in ("failed", "stale") else ""
    return f"{run.detail}{log}"
