"""Encoding times: what compressing, decompressing and keeping the error add to a step.

Emulated steps leave them out. They come, in this order, from a GPU's record of the workload's
device, from a published time of top-k's selection, or from bytes over memory bandwidth.
encoding.toml has bytes and sources, docs/speedups.md explains them.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from cser_bench.harness.measures.hardware import hardware
from cser_bench.harness.records.shipped import SHIPPED
from cser_bench.harness.records.store import Record
from cser_bench.harness.records.timings import EncodingTimes, TimedMethod, Workload

Basis = Literal["measured", "published", "bytes over bandwidth"]

TIMES = SHIPPED / "gpu" / "encoding.json"
"""The record that `make gpu-check` writes."""

RADIX_BITS = 8
"""Bits of a number that a pass of torch.topk tells apart."""

FLOAT_BYTES = 4


class CompressorCost(Record):
    """What a kind of compressor moves in an encoded step; see encoding.toml."""

    bytes: float = 0
    arriving: float = 0
    is_gathered: bool = False
    is_shared: bool = False
    selects: bool = False


class AlgorithmCost(Record):
    """What a method moves besides its compressors, and when these encode; see encoding.toml."""

    bytes: float = 0
    every: str = ""
    unshared_bytes: float = 0
    compressors: dict[str, str] = Field(default_factory=dict)


class Selection(Record):
    """A published time of torch.topk."""

    seconds: float
    numbers: int
    bytes_per_number: int
    device: str
    torch: str
    source: str


class Costs(Record):
    """What encoding.toml holds."""

    compressors: dict[str, CompressorCost]
    algorithms: dict[str, AlgorithmCost]
    selection: Selection


@dataclass(frozen=True)
class Encoding:
    """Mean seconds of a step's encoding, and the basis of the longest part of them."""

    seconds: float
    basis: Basis


@dataclass(frozen=True)
class _Device:
    """Where is encoded: how many numbers and workers, on which memory, and what was measured.

    Attributes:
        measured: seconds by a compressor's name.
    """

    num_parameters: int
    num_workers: int
    bytes_per_second: float
    measured: Mapping[str, float]


@cache
def costs() -> Costs:
    """Return what each method and compressor moves."""
    text = (Path(__file__).parent / "encoding.toml").read_text()
    return Costs.model_validate(tomllib.loads(text))


def encoding_of(
    method: TimedMethod,
    workload: Workload,
    num_workers: int,
    times: EncodingTimes | None = None,
) -> Encoding | None:
    """Return what a step of the method takes to encode, on average over its steps.

    Args:
        times: what a GPU took; it counts where it is of the workload's device and size, and of as
            many workers.

    Returns None where nothing is known of the method, its compressor or the device's memory.
    """
    device = _device(workload, num_workers, times)
    algorithm = costs().algorithms.get(method.algorithm)
    if device is None or algorithm is None:
        return None
    settings = method.settings
    # Averages over steps: what is done every H steps costs 1 / H of it in each.
    whole = name_of({"kind": method.algorithm, **settings})
    interval = _interval(settings, algorithm.every)
    parts = [_method_part(algorithm, whole, device, interval)]
    is_error_kept = False
    for setting, compressor in settings.items():
        if not _is_compressor(compressor):
            continue
        cost = costs().compressors.get(compressor["kind"])
        if cost is None or setting not in algorithm.compressors:
            return None
        # Where all workers send the same entries, the error is in the parameters and moves nothing.
        is_error_kept |= not cost.is_shared
        interval = _interval(settings, algorithm.compressors[setting])
        parts.append(_compressor_part(cost, compressor, device, interval))
    if is_error_kept:
        seconds = _moving(algorithm.unshared_bytes, device)
        parts.append(Encoding(seconds, "bytes over bandwidth"))
    return Encoding(sum(part.seconds for part in parts), _basis(parts))


def name_of(compressor: Mapping[str, Any]) -> str:
    """Return a compressor's name in a record of times: its kind and settings."""
    settings = sorted(key for key in compressor if key != "kind")
    return " ".join(
        [compressor["kind"], *(f"{key}={compressor[key]}" for key in settings)]
    )


def selection_seconds(num_parameters: int) -> float:
    """Return the published time of torch.topk, scaled to so many fp32 numbers by what it reads."""
    published = costs().selection
    # Twice the numbers take twice the time, and fp32 has more passes than fp16.
    moved = published.numbers * _selection_bytes(published.bytes_per_number)
    return published.seconds * num_parameters * _selection_bytes(FLOAT_BYTES) / moved


def _selection_bytes(bytes_per_number: int) -> int:
    """Return the bytes that a selection reads per number: radix passes, and one that gathers."""
    # Of fp32 four passes of 8 bits each and one more: 5 x 4 bytes.
    num_passes = 8 * bytes_per_number // RADIX_BITS + 1
    return num_passes * bytes_per_number


def _device(
    workload: Workload, num_workers: int, times: EncodingTimes | None
) -> _Device | None:
    """Return the device of a workload; None where its memory's bandwidth is not known."""
    for memory in hardware().memory:
        if memory.device in workload.device:
            measured: Mapping[str, float] = {}
            # Another device's times say nothing of the one whose steps they would be added to.
            if times is not None and memory.device in times.device:
                size = (workload.num_parameters, num_workers)
                if size == (times.num_parameters, times.num_workers):
                    measured = times.seconds
            rate = memory.bytes_per_second
            return _Device(workload.num_parameters, num_workers, rate, measured)
    return None


def _is_compressor(value: object) -> bool:
    return isinstance(value, dict) and "kind" in value


def _interval(settings: Mapping[str, Any], name: str) -> int:
    """Return a setting's number of steps; 1 where no setting is named."""
    if not name:
        return 1
    return int(settings[name])


def _moving(bytes_per_number: float, device: _Device) -> float:
    """Return the seconds to move so many bytes of each of the network's numbers."""
    return bytes_per_number * device.num_parameters / device.bytes_per_second


def _method_part(
    algorithm: AlgorithmCost, name: str, device: _Device, interval: int
) -> Encoding:
    """Return what a method does besides compressing, in a step on average."""
    if name in device.measured:
        return Encoding(device.measured[name] / interval, "measured")
    return Encoding(_moving(algorithm.bytes, device) / interval, "bytes over bandwidth")


def _compressor_part(
    cost: CompressorCost, compressor: Mapping[str, Any], device: _Device, interval: int
) -> Encoding:
    """Return what a compressor, given by its kind and settings, takes in a step on average."""
    name = name_of(compressor)
    if name in device.measured:
        return Encoding(device.measured[name] / interval, "measured")
    num_bytes = cost.bytes
    if cost.arriving:
        # Of a gathered message each worker decodes every worker's; of a reduced one the sum alone.
        num_messages = 1
        if cost.is_gathered:
            num_messages = device.num_workers
        num_bytes += cost.arriving * num_messages / compressor["ratio"]
    seconds = _moving(num_bytes, device)
    if cost.selects:
        seconds += selection_seconds(device.num_parameters)
        return Encoding(seconds / interval, "published")
    return Encoding(seconds / interval, "bytes over bandwidth")


def _basis(parts: list[Encoding]) -> Basis:
    """Return the basis of the longest part."""
    return max(parts, key=lambda part: part.seconds).basis
