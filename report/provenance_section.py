"""How an experiment was run: its settings, its commands, and who ran it where with what code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from cser_bench.harness.records.experiment import Row
from cser_bench.report.contrasts_section import row_name
from cser_bench.report.frame import Frames

LOCAL_STEPS = {"adamw": "AdamW", "muon": "Muon", "sgd": "SGD"}
"""What is printed of a local step's name."""

_MOST_STATES = 6
"""States of the code, or machines, that are named on a page."""


@dataclass(frozen=True)
class ProvenanceSection:
    """What the template shows.

    Attributes:
        settings: what all rows have in common, a line each: setting, value.
        commands: that run and report it.
        failures: runs without a result by what they lack one for: "1 failed", "2 missing".
        num_unplanned: runs in the folder that no row names.
        states: a line each state of the code and machine: commit, changed, device, cpu, num_runs.
        more_states: number of further ones.
        num_attempts, num_changed: attempts at runs; those with changes that stood in no commit.
        hours: of wall time. packages: those of the most attempts.
    """

    settings: pd.DataFrame
    commands: list[str]
    failures: list[str]
    num_unplanned: int
    states: pd.DataFrame
    more_states: int
    num_attempts: int
    num_changed: int
    hours: float
    packages: str


def provenance_section(frames: Frames) -> ProvenanceSection:
    """Return how the experiment was run."""
    attempts = frames.attempts
    states = _states_of_code(attempts)
    is_changed = attempts["git_diff_sha256"].notna()
    statuses = frames.runs["status"]
    without_score = statuses[statuses.isin(("failed", "missing"))]
    counts = without_score.value_counts().sort_index()
    # Rows may share a run: its time counts once.
    runs = frames.runs.drop_duplicates("run_id")
    seconds = runs["wall_seconds"].fillna(0).astype(float)
    packages = ""
    if len(attempts):
        # Counts come in falling order, so the first are those of the most attempts.
        packages = attempts["packages"].value_counts().index[0]
    return ProvenanceSection(
        settings=_settings(frames),
        commands=frames.experiment.commands,
        failures=[f"{number} {status}" for status, number in counts.items()],
        num_unplanned=frames.unplanned,
        states=states.iloc[:_MOST_STATES],
        more_states=max(0, len(states) - _MOST_STATES),
        num_attempts=len(attempts),
        num_changed=int(is_changed.sum()),
        hours=float(seconds.sum()) / 3600,
        packages=packages,
    )


def _settings(frames: Frames) -> pd.DataFrame:
    """Return what all rows have in common, a setting each."""
    experiment = frames.experiment
    config = experiment.config | {"seeds": experiment.seeds}
    baseline = experiment.baseline
    if baseline:
        # The baseline may have more seeds than others, as all are compared with it.
        runs = frames.runs
        seeds = runs.loc[runs["row"] == baseline, "seed"].unique()
        baseline_seeds = sorted(seeds.tolist())
        if baseline_seeds != experiment.seeds:
            config[f"seeds of {row_name(frames, baseline)}"] = baseline_seeds
    # Records keep the name that runs' ids are made of.
    names = {"wire": "communication dtype"}
    lines = _local_steps(frames)
    for key, value in config.items():
        text = _in_words(value)
        if text:
            lines.append((names.get(key, key).replace("_", " "), text))
    return pd.DataFrame(lines, columns=["setting", "value"])


def _local_steps(frames: Frames) -> list[tuple[str, str]]:
    """Return the settings of local steps, those of the most methods first, then of the methods that differ."""
    methods: dict[str, dict[str, None]] = {}
    for row in frames.experiment.rows:
        methods.setdefault(_local_step(row), {})[row.label] = None
    ordered = sorted(methods.items(), key=lambda pair: -len(pair[1]))
    lines: list[tuple[str, str]] = []
    for settings, labels in ordered:
        name = "local step"
        if lines:
            name = f"local step of {'; '.join(labels)}"
        lines.append((name, settings))
    return lines


def _local_step(row: Row) -> str:
    """Return the settings of a row's local step without its learning rate: "SGD, momentum 0, weight decay 0.1"."""
    name = row.local_step.replace("_", " ")
    parts = [LOCAL_STEPS.get(row.local_step, name)]
    if row.local_step != "adamw":
        parts.append(f"momentum {row.momentum:g}")
        if row.momentum and row.nesterov:
            parts.append("Nesterov")
    if row.local_step in ("adamw", "muon"):
        beta1, beta2 = row.betas
        parts.append(f"betas {beta1:g} and {beta2:g}, eps {row.eps:g}")
    parts.append(f"weight decay {row.weight_decay:g}")
    return ", ".join(parts)


def _in_words(value: Any) -> str:
    """Return a setting as text: of a table its entries, without those that are nothing."""
    if isinstance(value, Mapping):
        entries = []
        for key, entry in value.items():
            if entry not in (0, [], None, {}, False):
                name = key.replace("_", " ")
                entries.append(f"{name} {_in_words(entry)}")
        return ", ".join(entries)
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)


def _states_of_code(attempts: pd.DataFrame) -> pd.DataFrame:
    """Count the runs that each state of the code and each machine had, the most first."""
    # Twelve digits tell commits apart in any repository, and fit a column.
    commits = [str(commit or "none")[:12] for commit in attempts["git_commit"]]
    is_changed = attempts["git_diff_sha256"].notna()
    changed = is_changed.map({True: "yes", False: "no"})
    processors = []
    for cpu, num_cpus in zip(attempts["cpu"], attempts["num_cpus"], strict=True):
        processors.append(f"{cpu}, {num_cpus} CPUs")
    named = attempts.assign(commit=commits, changed=changed, cpu=processors)
    # A record may lack what is grouped by, and such attempts are a state too.
    groups = named.groupby(["commit", "changed", "device", "cpu"], dropna=False)
    states = groups["run_id"].nunique().rename("num_runs").reset_index()
    return states.sort_values("num_runs", ascending=False, kind="stable")
