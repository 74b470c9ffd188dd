"""The table of what is timed: baselines, the family at three overall ratios, and its overlapped variants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.train.build import table_at_ratio

BUCKET_MEGABYTES = 25
"""DDP's default for all buckets but the first, which is of 1 MB."""

DDP_CARD = (
    f"DistributedDataParallel, buckets of {BUCKET_MEGABYTES} MB (the first 1 MB) that are views of the gradients, "
    "fused torch SGD with Nesterov momentum"
)
NO_OVERLAP = "all-reduces begin when the backward pass is done"


@dataclass(frozen=True)
class Contestant:
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

    @property
    def period(self) -> int:
        """Steps after which its pattern of messages repeats."""
        period: int = self.settings.get("reset_interval", self.settings.get("sync_interval", 1))
        return period


def _ddp(label: str, algorithm: str, overlap: bool, words: str, **settings: int) -> Contestant:
    card = f"{DDP_CARD}; {words}; {'overlapped' if overlap else NO_OVERLAP}"
    return Contestant(label, algorithm, settings, baseline=True, overlap=overlap, card=card)


def _own(label: str, algorithm: str, ratio: int = 256, overlap: bool = False) -> Contestant:
    settings = table_at_ratio(algorithm, ratio)
    how = "begun in the backward pass" if overlap else "after the backward pass"
    card = f"block sparsifiers, {_in_words(settings)}; fp32; one all-reduce for each message, {how}"
    return Contestant(label, algorithm, settings, overlap=overlap, card=card)


def _in_words(settings: Mapping[str, Any]) -> str:
    names = {"compressor": "R", "gradient_compressor": "R2", "error_compressor": "R1"}
    return ", ".join(
        f"{names[key]} = {value['ratio']}" if key in names else f"H = {value}" for key, value in settings.items()
    )


METHODS: dict[str, Contestant] = {
    "all_reduce": Contestant(
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
}
"""By name, in the order of tables. Those of the family without a ratio in their label have an overall one of 256."""
