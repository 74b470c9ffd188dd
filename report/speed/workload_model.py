"""A study as it is read: its records, and a model of each workload's steps on any network from
timings and sweeps."""

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from cser_bench.harness.errors import UsageError
from cser_bench.harness.measures.hardware import Memory, hardware
from cser_bench.harness.records.store import Attempt, RecordError, read_record
from cser_bench.harness.records.timings import (
    Basis,
    Sweep,
    TimedMethod,
    Timing,
    TimingStudy,
    Workload,
)
from cser_bench.report.speed.cost_model import Algorithm, Compute, Network, period_seconds
from cser_bench.report.speed.fitting import Fit, fit_line, fits_of, network_on
from cser_bench.report.speed.timed import cells_frame

STUDY = "study.json"
SCORED = "scored_speedups"
"""The folder beside a study's that may hold sessions of scored methods, too."""


@cache
def codec_bytes() -> dict[str, float]:
    """Bytes that a method moves per parameter and step, by its name."""
    table: dict[str, float] = tomllib.loads((Path(__file__).parent / "codecs.toml").read_text())[
        "codec_bytes"
    ]
    return table


@dataclass(frozen=True, eq=False)
class WorkloadModel:
    """One workload: its timings, the fits that the model of it uses, and seconds of each method's
    codec on its host."""

    timings: tuple[Timing, ...]
    fits: tuple[Fit, ...]
    host_codecs: dict[str, float]

    @property
    def workload(self) -> Workload:
        return self.timings[0].workload

    @property
    def basis(self) -> Basis:
        return self.timings[0].basis

    @cached_property
    def main(self) -> Timing:
        """The timing whose layout the curves take: one worker a machine where there is one, of the
        most methods."""
        return max(self.timings, key=lambda t: (t.fabric.workers_per_machine == 1, len(t.methods)))

    @cached_property
    def methods(self) -> dict[str, TimedMethod]:
        """Every method by name: those timed on the layout of the curves first, baselines before
        others."""
        found: dict[str, TimedMethod] = {}
        for timing in (self.main, *self.timings):
            for method in timing.methods:
                found.setdefault(method.name, method)
        return dict(sorted(found.items(), key=lambda pair: not pair[1].baseline))

    @cached_property
    def _dilations(self) -> dict[float, float]:
        """How many times slowed down each timed rate of the curves' layout was, in the timing of
        the most methods."""
        found: dict[float, float] = {}
        for timing in sorted(self.timings, key=lambda t: -len(t.methods)):
            bits = (timing.fabric.bits_per_second or 0.0) * timing.fabric.dilation
            if bits and timing.fabric.layout == self.main.fabric.layout:
                found.setdefault(round(bits), timing.fabric.dilation)
        return dict(sorted(found.items()))

    @property
    def emulated_device(self) -> Memory | None:
        """The memory of an emulated workload's device; None: it was measured, or nothing is
        published of its device."""
        devices = hardware().memory if self.basis == "emulated" else []
        return next((memory for memory in devices if memory.device in self.workload.device), None)

    def codec_seconds(self, method: TimedMethod) -> float:
        """Seconds of encoding, decoding and update that the model takes.

        For an emulated device of the table the bytes that the method moves over the device's memory
        bandwidth, else the line through what was timed here. Raises ValueError: the table does not
        say what the method moves.
        """
        device = self.emulated_device
        if device is None:
            return self.host_codecs.get(method.name, 0.0)
        if method.name not in codec_bytes():
            raise ValueError(
                f"report/speed/codecs.toml has no codec_bytes of {method.name}; add what it moves"
            )
        return codec_bytes()[method.name] * self.workload.num_parameters / device.bytes_per_second

    def predicted(self, timing: Timing, name: str) -> tuple[float, float]:
        """Modelled seconds of a step as timed, and of its communication; nan where no network like
        its was swept."""
        network = network_on(timing.fabric, self.fits)
        if network is None:
            return math.nan, math.nan
        method = next(method for method in timing.methods if method.name == name)
        codec = self.host_codecs.get(name, 0.0) if timing.basis == "measured" else 0.0
        step = self.seconds(method, network, codec=0.0)
        return step + codec, step - self.workload.compute_seconds

    @property
    def is_modelled(self) -> bool:
        """Whether a network of the kind that it ran on was swept; where not, there is nothing else
        to ask."""
        return network_on(self.main.fabric, self.fits) is not None

    def network(
        self,
        bits_per_second: float,
        layout: tuple[int, int] | None = None,
        inside_bits_per_second: float | None = None,
        algorithm: Algorithm = "ring",
    ) -> Network:
        """The network that a fabric would be whose machines' and workers' links have these real
        rates (None: no limit).

        Its latency is the lab's over the dilation, and that is as in the timings, by logarithms
        between timed rates. `layout` is machines and workers a machine, by default that of the
        curves.
        """
        main, dilation = self.main.fabric, self.main.fabric.dilation
        machines, workers = layout or main.layout
        if self._dilations:
            logs = np.log([*self._dilations]), np.log([*self._dilations.values()])
            dilation = math.exp(np.interp(math.log(bits_per_second), *logs))
        slowed = {
            "num_machines": machines,
            "workers_per_machine": workers,
            "bits_per_second": bits_per_second / dilation,
            "inside_bits_per_second": inside_bits_per_second / dilation
            if inside_bits_per_second
            else None,
            "dilation": dilation,
        }
        network = network_on(main.model_copy(update=slowed), self.fits, algorithm)
        assert network is not None, "a workload that cannot be modelled is not asked for a network"
        return network

    def seconds(
        self, method: TimedMethod, network: Network, slower: float = 1.0, codec: float | None = None
    ) -> float:
        """Modelled seconds of a step, with these of the codec or else its own, on a device so many
        times slower."""
        codec = self.codec_seconds(method) if codec is None else codec
        compute = Compute(
            slower * self.workload.forward_seconds, slower * self.workload.backward_seconds, codec
        )
        return period_seconds(compute, method.messages, method.period, network)


@cache
def _network_at(model: WorkloadModel, bits_per_second: float) -> Network:
    return model.network(bits_per_second)


@cache
def seconds_at(
    model: WorkloadModel, method: str, bits_per_second: float, slower: float = 1.0
) -> float:
    """Modelled seconds of a step of a method, by name, on the curves' layout, by a device so many
    times slower."""
    return model.seconds(model.methods[method], _network_at(model, bits_per_second), slower)


@dataclass(frozen=True)
class SpeedStudy:
    """A study's records, in the order of its lists, and what follows from them.

    `sessions` are of scored methods; `wide`, `consecutive` and `text` are on links of several
    latencies, the last two of steps in a row. `models` are the workloads', by name. `cells` is
    `cells_frame` of the timings beside their predictions, which are `predicted_seconds`,
    `predicted_communication_seconds` and the relative errors of both, `error` and
    `communication_error`; nan where nothing was swept, or the clock had no communication.
    """

    study: TimingStudy
    sweeps: tuple[Sweep, ...]
    timings: tuple[Timing, ...]
    sessions: tuple[Timing, ...]
    wide: tuple[Timing, ...]
    consecutive: tuple[Timing, ...]
    text: tuple[Timing, ...]
    fits: tuple[Fit, ...]
    models: dict[str, WorkloadModel]
    cells: pd.DataFrame

    @property
    def attempts(self) -> list[Attempt]:
        """Of all records, in the order of these fields."""
        timings = (*self.timings, *self.sessions, *self.wide, *self.consecutive, *self.text)
        return [sweep.attempt for sweep in self.sweeps] + [timing.attempt for timing in timings]


def read_study(folder: Path) -> SpeedStudy:
    """Read a study, fit its sweeps and set the model beside the clock.

    Raises:
        UsageError: no such folder, or no study in it.
        RecordError: a record is missing or damaged, or two are from different machines; the message
            names the file.
    """
    if not (folder / STUDY).exists():
        raise UsageError(
            f"{folder} holds no {STUDY}; give the folder of a study, as results/speedups"
        )
    study = read_record(folder / STUDY, TimingStudy)
    scored = sorted(
        {*folder.glob("scored-*.json"), *(folder.parent / SCORED).glob("scored-*.json")}
    )
    paths = [[folder / name for name in study.timings], scored]
    paths += [sorted(folder.glob(f"{name}-*.json")) for name in ("wide", "consecutive", "text")]
    sweeps = {folder / name: read_record(folder / name, Sweep) for name in study.sweeps}
    timed = [{path: read_record(path, Timing) for path in own} for own in paths]
    _refuse_mixed({**sweeps, **timed[0]})
    for own in timed[1:]:
        _refuse_mixed({**own})
    timings, sessions, wide, consecutive, text = (tuple(own.values()) for own in timed)
    fits, cells, models = (
        tuple(fit for sweep in sweeps.values() for fit in fits_of(sweep)),
        cells_frame(timings),
        {},
    )
    for work in {timing.workload.name: timing.workload for timing in timings}.values():
        mine = tuple(timing for timing in timings if timing.workload.name == work.name)
        models[work.name] = WorkloadModel(mine, fits, _host_codecs(timings, work.num_parameters))
    pairs = [
        (timings[number], name)
        for number, name in zip(cells["timing"], cells["method"], strict=True)
    ]
    predicted = [models[timing.workload.name].predicted(timing, name) for timing, name in pairs]
    cells[["predicted_seconds", "predicted_communication_seconds"]] = np.array(predicted).reshape(
        -1, 2
    )
    cells["error"] = cells["predicted_seconds"] / cells["seconds"] - 1
    talk = cells["communication_seconds"].where(
        cells["communication_seconds"] > 1e-6 * cells["seconds"]
    )
    cells["communication_error"] = cells["predicted_communication_seconds"] / talk - 1
    swept = tuple(sweeps.values())
    return SpeedStudy(study, swept, timings, sessions, wide, consecutive, text, fits, models, cells)


def _refuse_mixed(records: Mapping[Path, Sweep | Timing]) -> None:
    """Times of two machines, or of two versions of torch, cannot be set beside one another."""
    attempts = {path: record.attempt for path, record in records.items()}
    machines = {
        path: (a.host, a.cpu, a.packages.get("torch", "unknown")) for path, a in attempts.items()
    }
    for path, machine in machines.items():
        first, expected = next(iter(machines.items()))
        for what, ours, theirs in zip(("host", "CPU", "torch"), expected, machine, strict=True):
            if ours != theirs:
                raise RecordError(
                    f"{path} was timed on another machine than {first.name} ({what} {theirs}, not "
                    f"{ours}); keep each machine's records in a study of their own"
                )


def _host_codecs(timings: Sequence[Timing], num_parameters: int) -> dict[str, float]:
    """Seconds of each method's codec at this size, of a worker with a core to itself: the line
    through what was timed; of one size alone only its slope."""
    seen: dict[str, list[tuple[int, float]]] = {}
    for timing in timings:
        for method in timing.methods:
            if method.codec_alone_seconds:
                seen.setdefault(method.name, []).append(
                    (timing.workload.num_parameters, method.codec_alone_seconds)
                )
    found = {}
    for name, pairs in seen.items():
        sizes, times = zip(*pairs, strict=True)
        constant, slope = fit_line([float(len(set(sizes)) > 1)] * len(sizes), sizes, times)
        found[name] = constant + slope * num_parameters
    return found
