"""The names that reports print: of methods, tasks and networks, each the same in all reports.

Labels of records that ship stay as they are: they are data. What a label says of settings is in the column of
settings already, and no name holds a comma.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cser_bench.harness.records.experiment import Row
from cser_bench.harness.records.timings import TimedMethod
from cser_bench.report.frame import Frames

METHODS = {
    "alone": "no communication",
    "alone, with all data": "one worker with all data",
    "final average": "one average at the end",
    "SGD accumulate": "SGD with larger batches",
    "SGD, batches 24 times as large": "SGD with 24 times larger batches",
    "SGD, batches 96 times as large": "SGD with 96 times larger batches",
    "AdamW, batches 8 times as large": "AdamW with 8 times larger batches",
    "EF-SGD": "EF blocks",
    "EF-SGD block": "EF blocks",
    "EF-SGD top-k": "EF top-k",
    "EF-SGD top-k without error": "EF top-k without error",
    "EF-AdamW top-k": "EF top-k",
    "EF-AdamW top-k, on gradients": "EF top-k on gradients",
    "EF-AdamW top-k, on updates": "EF top-k on updates",
    "EF-SGD 4 bits every step, on gradients": "EF 4-bit every step on gradients",
    "EF-SGD top-k, on gradients": "EF top-k on gradients",
    "QSparse-local-SGD, 4 bits in two stages": "EF 4-bit",
    "QSparse-local-AdamW, 4 bits in two stages": "EF 4-bit",
    "error feedback with 4 bits": "EF 4-bit",
    "error reset with 4 bits": "CSEA-AdamW 4-bit",
    "CSEA block": "CSEA blocks",
    "CSEA with AdamW, 4 bits in two stages": "CSEA-AdamW 4-bit",
    "CSER (M-CSER, momentum 0)": "CSER",
    "CSER with AdamW": "CSER-AdamW top-k",
    "CSER with AdamW, blocks": "CSER-AdamW blocks",
    "CSER with AdamW, top-k for the error": "CSER-AdamW top-k",
    "CSER-PL with AdamW, 4 bits in two stages": "CSER-PL-AdamW 4-bit",
    "M-CSER-PL, 4 bits in two stages": "M-CSER-PL 4-bit",
    "M-CSER block": "M-CSER blocks",
    "M-CSER, top-k for the error": "M-CSER top-k",
    "M-CSER, blocks of each tensor": "M-CSER blocks of each tensor",
    "M-CSER H 16, R1 3, R2 48": "M-CSER blocks",
    "M-CSER H 16, R1 12, R2 192": "M-CSER blocks",
    "M-CSER, averages parameters": "M-CSER averaging parameters",
    "M-CSER, decay in the momentum alone": "M-CSER with decay in the momentum alone",
    "M-CSER, skips the update at a reset": "M-CSER without the update at a reset",
    "local SGD (C2 = 0, H 24, R1 1)": "local SGD",
    "local SGD (C2 = 0, H 96, R1 1)": "local SGD",
    "local AdamW, averaged moments": "local AdamW with averaged moments",
    "DiLoCo with AdamW": "DiLoCo",
    "DiLoCo with AdamW, outer momentum 0.9": "DiLoCo outer momentum 0.9",
    "DiLoCo with Muon, outer momentum 0.9": "DiLoCo-Muon",
    "Streaming DiLoCo, 4 bits": "Streaming DiLoCo 4-bit",
    "NoLoCo, pairs": "NoLoCo",
    "QSR with AdamW": "QSR",
    "PowerSGD with AdamW": "PowerSGD",
    "PowerSGD rank 1": "PowerSGD",
    "PowerSGD, rank 1": "PowerSGD",
    "decentralised SGD, ring": "D-PSGD ring",
    "DeepSqueeze, ring, QSGD": "DeepSqueeze QSGD",
    "CHOCO-SGD, ring, top-k": "CHOCO-SGD top-k",
    "CHOCO-SGD without estimate and mixed estimates": "CHOCO-SGD without estimates",
    "CHOCO-SGD without estimate and mixed estimates of worker 7": (
        "CHOCO-SGD without estimates of worker 7"
    ),
    "EF21-SGDM without estimate and mean estimate": "EF21-SGDM without estimates",
}
"""What is printed for a label of a record; others stay but for the endings below."""

TIMED = {
    "SGD, one all-reduce": "SGD with one all-reduce",
    "DDP": "DDP (fp32)",
    "DDP, no overlap": "DDP (fp32) without overlap",
    "DDP, fp16": "DDP + fp16 hook",
    "DDP, fp16, no overlap": "DDP + fp16 hook without overlap",
    "DDP, PowerSGD rank 1": "DDP + PowerSGD hook rank 1",
    "DDP, PowerSGD rank 2": "DDP + PowerSGD hook rank 2",
    "DDP, PowerSGD rank 4": "DDP + PowerSGD hook rank 4",
    "PowerSGD rank 2, two messages": "PowerSGD rank 2 in two messages",
    "EF-SGD, 8 bits in two stages": "EF 8-bit",
}
"""What is printed for a timed method whose label no row of an experiment has."""

TIMED_ENDINGS = (", ratio ", ", overlapped", ", waiting")
"""Where a timed method's label says more than the method, from there on."""

ENDINGS = {
    ", tail of 5 %": " + 5 % tail",
    ", tail of 25 %": " + 25 % tail",
    ", error feedback": " with error feedback",
    ", error reset": " with error reset",
    ", dropped": " dropped",
    ", rate ": " at lr ",
}

TASKS = {
    "cifar100": "CIFAR-100",
    "cmudict": "CMU dictionary (letters to phones)",
    "fashion_mnist": "Fashion-MNIST",
    "fashion_mnist_crops": "Fashion-MNIST (cropped and flipped)",
    "gcide": "a dictionary by characters",
    "imagenet": "ImageNet",
    "kjv_es": "King James Bible (English to Spanish)",
    "kjv_text": "King James Bible by characters",
}

NETWORKS = {
    "gpt": "GPT",
    "mlp": "perceptron",
    "small_cnn": "CNN",
    "small_densenet": "small DenseNet",
    "small_shufflenet": "small ShuffleNet",
    "transformer": "Transformer",
    "wide_resnet": "residual network",
}

_ERRORS = {"top_k": "top-k", "block": "blocks"}
"""What the paper's method sends of its error, by the compressor's kind in a spec."""


def short_label(row: Row) -> str:
    """Return the name of a row's method as reports print it."""
    label = row.label
    for ending, words in ENDINGS.items():
        # Before the rest is looked up: "M-CSER, tail of 5 %" is M-CSER with a tail.
        if ending in label:
            head, _, rest = label.partition(ending)
            return f"{_method(head, row.settings)}{words}{rest}"
    return _method(label, row.settings)


def timed_label(method: TimedMethod) -> str:
    """Return the name of a timed method as reports print it."""
    if method.label in TIMED:
        return TIMED[method.label]
    for ending in TIMED_ENDINGS:
        if ending in method.label:
            head, _, rest = method.label.partition(ending)
            return f"{_method(head, method.settings)}{ending.removeprefix(',')}{rest}"
    return _method(method.label, method.settings)


def _method(label: str, settings: Mapping[str, Any]) -> str:
    """Return the name of a method, by its label in a record without what `ENDINGS` has."""
    # Records call two methods so, which differ in what they send of the error.
    if label == "M-CSER":
        error = settings.get("error_compressor", {}).get("kind")
        if error in _ERRORS:
            return f"M-CSER {_ERRORS[error]}"
        return label
    return METHODS.get(label, label.replace(", ", " "))


def with_short_labels(frames: Frames) -> Frames:
    """Return the frames of an experiment with the names that reports print."""
    rows = [
        row.model_copy(update={"label": short_label(row)})
        for row in frames.experiment.rows
    ]
    experiment = frames.experiment.model_copy(update={"rows": rows})
    labels = {row.row: row.label for row in rows}
    tuning = frames.tuning
    if len(tuning):
        # A search may have tuned rows that the experiment then did not run.
        tuning = tuning.assign(label=tuning["row"].map(labels).fillna(tuning["label"]))
    return replace(
        frames,
        experiment=experiment,
        rows=frames.rows.assign(label=frames.rows["row"].map(labels)),
        tuning=tuning,
    )
