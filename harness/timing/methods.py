"""What is timed: baselines, the family at three overall ratios, relatives, and exactly what experiments score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from algorithms.registry import baselines
from harness.plan.plan import plan_experiment
from harness.records.timings import Method
from harness.spec import SpecError
from harness.spec_file import find_spec, load_spec
from harness.timing.workloads import MOMENTUM
from harness.train.build import table_at_ratio

RATIO = 256
MAIN = "fashion_mnist_long"
"""The experiment whose rows at its main ratio are timed: another name here, and its rows are."""
EXPERIMENTS = (MAIN, "fashion_mnist_regime")
"""Whose rows are timed as they are scored: the main one, and others with all their rows."""


def method(
    name: str,
    label: str,
    algorithm: str,
    settings: Mapping[str, Any],
    overlap: bool = False,
    momentum: float = MOMENTUM,
    num_steps: int = 0,
) -> Method:
    """A method as a session times it, of which nothing is known yet that a session finds out.

    Args:
        settings: as a spec has them.
        overlap: whether collectives begin during the backward pass.
        num_steps: of the run that it is of, where a setting is said as the run's end.
    """
    intervals = (settings.get(key) for key in ("reset_interval", "sync_interval", "accumulation_steps"))
    period = next((each for each in intervals if each is not None), 1)
    if isinstance(period, int):
        period //= settings.get("num_fragments", 1)
    return Method(
        name=name,
        label=label,
        algorithm=algorithm,
        settings=dict(settings),
        momentum=momentum,
        rows=[],
        messages=[],
        baseline=algorithm in baselines() or algorithm == "sgd",
        overlap=overlap,
        period=num_steps if period == "end" else period,
    )


def _ddp(name: str, label: str, algorithm: str = "ddp", **settings: int) -> Method:
    return method(name, label, algorithm, settings, overlap=True)


def _own(name: str, label: str, algorithm: str, ratio: int = RATIO, **settings: str) -> Method:
    overlap = name.endswith("_overlap")
    return method(name, label, algorithm, table_at_ratio(algorithm, ratio) | settings, overlap)


_SPARTA = {"error_compressor": {"kind": "random_k", "ratio": RATIO}, "reset_interval": 1}
_TABLE = (
    method("all_reduce", "SGD, one all-reduce", "sgd", {}),
    _ddp("ddp", "DDP"),
    _ddp("ddp_fp16", "DDP, fp16", "ddp_fp16"),
    *(_ddp(f"powersgd_{rank}", f"DDP, PowerSGD rank {rank}", "ddp_powersgd", rank=rank) for rank in (1, 2, 4)),
    _own("ef_sgd", "EF-SGD", "ef_sgd"),
    _own("qsparse_local_sgd", "QSparse-local-SGD", "qsparse_local_sgd"),
    _own("local_sgd", "local SGD", "local_sgd"),
    _own("csea", "CSEA", "csea"),
    _own("cser_pl", "CSER-PL", "cser_pl"),
    _own("mcser", "M-CSER", "mcser"),
    _own("mcser_32", "M-CSER, ratio 32", "mcser", 32),
    _own("mcser_1024", "M-CSER, ratio 1024", "mcser", 1024),
    _own("ef_sgd_overlap", "EF-SGD, overlapped", "ef_sgd"),
    _own("csea_overlap", "CSEA, overlapped", "csea"),
    _own("mcser_overlap", "M-CSER, overlapped", "mcser"),
    _own("dpsgd", "D-PSGD, one peer", "dpsgd", 1),
    _own("dpsgd_ring", "D-PSGD, ring", "dpsgd", 1, topology="ring"),
    _own("choco_sgd", "CHOCO-SGD", "choco_sgd"),
    _own("deep_squeeze", "DeepSqueeze", "deep_squeeze"),
    _own("diloco", "DiLoCo", "diloco"),
    _own("ef21_sgdm", "EF21-SGDM", "ef21_sgdm"),
    _own("noloco", "NoLoCo, pairs", "noloco"),
    # Its ratio depends on the model; the rank is that of the hook which it stands beside.
    method("powersgd", "PowerSGD rank 2, two messages", "powersgd", {"rank": 2}),
    method("sparta", "SPARTA", "cser_pl", _SPARTA),
    method("two_stage_8", "EF-SGD, 8 bits in two stages", "ef_sgd", {"compressor": {"kind": "quantised_blocks"}}),
)
METHODS = {each.name: each for each in _TABLE}
"""Methods by name, in the order of tables.

Those of the family without a ratio in their label have an overall one of 256, and so have their relatives; but D-PSGD
compresses nothing, and two stages of 8 bits have 3.9.
"""

STEPS_BETWEEN = 64
"""Steps between two averages of a model in `CONSECUTIVE`; blocks have that ratio."""
_STREAMING = {"sync_interval": STEPS_BETWEEN, "num_fragments": 4, "delay": 12}
_IN_A_ROW = (
    METHODS["ddp"],
    _own("mcser_64", "M-CSER", "mcser", STEPS_BETWEEN),
    _own("local_sgd_64", "local SGD", "local_sgd", STEPS_BETWEEN),
    _own("diloco_64", "DiLoCo", "diloco", STEPS_BETWEEN),
    method("streaming", "Streaming DiLoCo, waiting", "streaming_diloco", _STREAMING),
    method("streaming_overlap", "Streaming DiLoCo", "streaming_diloco", _STREAMING, overlap=True),
    method("streaming_4", "Streaming DiLoCo, 4 bits", "streaming_diloco", _STREAMING | {"bits": 4}, overlap=True),
    _own("noloco_64", "NoLoCo, pairs", "noloco", STEPS_BETWEEN),
    METHODS["dpsgd"],
)
CONSECUTIVE = {each.name: each for each in _IN_A_ROW}
"""The methods of consecutive steps: a message may travel beside the steps that follow, and a worker may be late."""


def named(known: Mapping[str, Method], names: Sequence[str]) -> list[Method]:
    """The methods of these names, all if none is given. Raises SpecError: one is unknown."""
    if unknown := [name for name in names if name not in known]:
        raise SpecError(f"unknown method {unknown[0]!r}; the methods are {', '.join(known)}")
    return [known[name] for name in names or known]


def scored_methods(results: Path) -> dict[str, Method]:
    """The baselines, then each configuration that the experiments score: settings as their tuning chose them.

    Of a row that is there at several ratios, in `MAIN`, that of the experiment's main ratio is taken; rows of
    the other experiments are all taken. DDP computes what SGD does, so SGD's rows are DDP's too. `results` may have
    the experiments' own tunings.
    """
    found: list[Method] = []
    for experiment in EXPERIMENTS:
        plan = plan_experiment(experiment, results)
        rows = {row.row: row for row in plan.experiment.rows if row.base is None}
        main = load_spec(find_spec(experiment)).statistics.main_ratio if experiment == MAIN else None
        at_main = {row.label for row in rows.values() if row.ratio == main}
        configs = {run.row: run.config for run in reversed(plan.runs) if run.row in rows}
        for name, row in rows.items():
            if main is not None and row.label in at_main and row.ratio != main:
                continue
            config = configs[name]
            key = config.algorithm, config.settings, config.momentum
            known = next((each for each in found if (each.algorithm, each.settings, each.momentum) == key), None)
            if known is None:
                known = method(name, row.label, *key[:2], momentum=config.momentum, num_steps=row.num_steps)
                found.append(known)
            known.rows.append(f"{experiment}/{name}")
    of_sgd = next(each.rows for each in found if each.algorithm == "sgd")
    rivals = [
        METHODS["ddp"].model_copy(update={"rows": of_sgd}),
        METHODS["ddp_fp16"],
        METHODS["powersgd_1"].model_copy(update={"name": "ddp_powersgd_1"}),
    ]
    return {each.name: each for each in [*rivals, *found]}
