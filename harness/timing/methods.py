"""The table of what is timed: baselines, the family at three overall ratios, its overlapped variants and relatives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.timing.workloads import MOMENTUM
from harness.train.build import table_at_ratio

BUCKET_MEGABYTES = 25
"""DDP's default for all buckets but the first, which is of 1 MB."""

DDP_CARD = (
    f"DistributedDataParallel, buckets of {BUCKET_MEGABYTES} MB (the first 1 MB) that are views of the gradients, "
    "fused torch SGD with Nesterov momentum"
)
NO_OVERLAP = "all-reduces begin when the backward pass is done"


@dataclass(frozen=True)
class TimedMethod:
    """One line of the table.

    `algorithm` and `settings` are as a spec has them; `card` says in words how it is built. DDP without overlap holds
    its buckets back.
    """

    label: str
    algorithm: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    baseline: bool = False
    overlap: bool = False
    card: str = ""
    momentum: float = MOMENTUM
    num_steps: int = 0
    """Of the run that it is of, where a setting is said as the run's end."""

    @property
    def period(self) -> int:
        """Steps after which its pattern of messages repeats."""
        intervals = (self.settings.get(key) for key in ("reset_interval", "sync_interval", "accumulation_steps"))
        period = next((each for each in intervals if each is not None), 1)
        return self.num_steps if period == "end" else int(period)

    @property
    def topology(self) -> str | None:
        """Who a worker's neighbours are, where it talks to them alone."""
        topology: str | None = self.settings.get("topology")
        return topology


def _ddp(label: str, algorithm: str, overlap: bool, words: str, **settings: int) -> TimedMethod:
    card = f"{DDP_CARD}; {words}; {'overlapped' if overlap else NO_OVERLAP}"
    return TimedMethod(label, algorithm, settings, baseline=True, overlap=overlap, card=card)


def _own(label: str, algorithm: str, ratio: int = 256, overlap: bool = False) -> TimedMethod:
    return _with(label, algorithm, table_at_ratio(algorithm, ratio), overlap)


def _with(label: str, algorithm: str, settings: Mapping[str, Any], overlap: bool = False) -> TimedMethod:
    how = "begun in the backward pass" if overlap else "after the backward pass"
    sent = "one message to each neighbour" if "topology" in settings else "one all-reduce for each message"
    card = f"{_in_words(settings)}; fp32; {sent}, {how}"
    return TimedMethod(label, algorithm, settings, overlap=overlap, card=card)


def _in_words(settings: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key.replace('_', ' ')}: {value['kind']} {value['ratio']}" if isinstance(value, dict) else f"{key}: {value}"
        for key, value in settings.items()
    )


METHODS: dict[str, TimedMethod] = {
    "all_reduce": TimedMethod(
        "SGD, one all-reduce",
        "sgd",
        baseline=True,
        card="one flat fp32 all-reduce of all gradients after the backward pass; fused SGD with Nesterov momentum",
    ),
    "ddp": _ddp("DDP", "ddp", True, "fp32"),
    "ddp_no_overlap": _ddp("DDP, no overlap", "ddp", False, "fp32"),
    "ddp_fp16": _ddp("DDP, fp16", "ddp_fp16", True, "fp16_compress_hook"),
    "ddp_fp16_no_overlap": _ddp("DDP, fp16, no overlap", "ddp_fp16", False, "fp16_compress_hook"),
    "powersgd_1": _ddp("DDP, PowerSGD rank 1", "ddp_powersgd", True, "powerSGD_hook, rank 1, error feedback", rank=1),
    "powersgd_2": _ddp("DDP, PowerSGD rank 2", "ddp_powersgd", True, "powerSGD_hook, rank 2, error feedback", rank=2),
    "powersgd_4": _ddp("DDP, PowerSGD rank 4", "ddp_powersgd", True, "powerSGD_hook, rank 4, error feedback", rank=4),
    "ef_sgd": _own("EF-SGD", "ef_sgd"),
    "qsparse_local_sgd": _own("QSparse-local-SGD", "qsparse_local_sgd"),
    "local_sgd": _own("local SGD", "local_sgd"),
    "csea": _own("CSEA", "csea"),
    "cser_pl": _own("CSER-PL", "cser_pl"),
    "mcser": _own("M-CSER", "mcser"),
    "mcser_32": _own("M-CSER, ratio 32", "mcser", 32),
    "mcser_1024": _own("M-CSER, ratio 1024", "mcser", 1024),
    "ef_sgd_overlap": _own("EF-SGD, overlapped", "ef_sgd", overlap=True),
    "csea_overlap": _own("CSEA, overlapped", "csea", overlap=True),
    "mcser_overlap": _own("M-CSER, overlapped", "mcser", overlap=True),
    "dpsgd": _own("D-PSGD, one peer", "dpsgd", 1),
    "dpsgd_ring": _with("D-PSGD, ring", "dpsgd", table_at_ratio("dpsgd", 1) | {"topology": "ring"}),
    "choco_sgd": _own("CHOCO-SGD", "choco_sgd"),
    "deep_squeeze": _own("DeepSqueeze", "deep_squeeze"),
    "diloco": _own("DiLoCo", "diloco"),
    "ef21_sgdm": _own("EF21-SGDM", "ef21_sgdm"),
    # Its ratio depends on the model; the rank is that of the hook which it stands beside.
    "powersgd": _with("PowerSGD rank 2, two messages", "powersgd", {"rank": 2}),
    "sparta": _with("SPARTA", "cser_pl", {"error_compressor": {"kind": "random_k", "ratio": 256}, "reset_interval": 1}),
}
"""By name, in the order of tables.

Those of the family without a ratio in their label have an overall one of 256, and so have their relatives; but D-PSGD
compresses nothing.
"""
