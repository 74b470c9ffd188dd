"""A study as it is read: its records, and a model of each workload's steps on any network."""

import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
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
from cser_bench.report.labels import timed_label
from cser_bench.report.speed.cost_model import (
    Algorithm,
    Compute,
    Network,
    period_seconds,
)
from cser_bench.report.speed.fitting import Fit, fit_line, fits_of, network_on
from cser_bench.report.speed.timed import timed_steps_frame

STUDY = "study.json"
SCORED_FOLDER = "scored_speedups"
"""Folder next to a study's, which may hold sessions of scored methods too."""


@cache
def codec_bytes() -> dict[str, float]:
    """Return the bytes that a method moves per parameter and step, by its name."""
    text = (Path(__file__).parent / "codecs.toml").read_text()
    table: dict[str, float] = tomllib.loads(text)["codec_bytes"]
    return table


# By identity, so that a model can be a key of `seconds_at`'s cache.
@dataclass(frozen=True, eq=False)
class WorkloadModel:
    """One workload: its timings, the fits of its model, and seconds of each method's codec.

    These are by the clock of the workload's host, by the method's name.
    """

    timings: tuple[Timing, ...]
    fits: tuple[Fit, ...]
    host_codecs: dict[str, float]

    @property
    def workload(self) -> Workload:
        """The same in all timings."""
        return self.timings[0].workload

    @property
    def basis(self) -> Basis:
        """Whether its passes were measured or emulated."""
        return self.timings[0].basis

    @cached_property
    def main(self) -> Timing:
        """The timing whose layout the curves take.

        One worker a machine where there is one, of the most methods.
        """
        return max(
            self.timings,
            key=lambda timing: (
                timing.fabric.workers_per_machine == 1,
                len(timing.methods),
            ),
        )

    @cached_property
    def methods(self) -> dict[str, TimedMethod]:
        """Every method by name, baselines before others.

        Those timed on the layout of the curves come first among either.
        """
        methods: dict[str, TimedMethod] = {}
        for timing in (self.main, *self.timings):
            for method in timing.methods:
                methods.setdefault(method.name, method)
        return dict(sorted(methods.items(), key=lambda pair: not pair[1].baseline))

    @cached_property
    def _dilations(self) -> dict[float, float]:
        """How many times slowed down each timed rate of the curves' layout was.

        In the timing of the most methods.
        """
        dilations: dict[float, float] = {}
        for timing in sorted(self.timings, key=lambda timing: -len(timing.methods)):
            fabric = timing.fabric
            # The rate that the slowed link stands for: all times are divided by the dilation.
            rate = (fabric.bits_per_second or 0.0) * fabric.dilation
            if rate and fabric.layout == self.main.fabric.layout:
                # Rounded, so that products of one real rate that differ in their last bits are one
                # key.
                dilations.setdefault(round(rate), fabric.dilation)
        return dict(sorted(dilations.items()))

    @property
    def emulated_device(self) -> Memory | None:
        """The memory of an emulated workload's device.

        None: it was measured, or nothing is published of its device.
        """
        if self.basis != "emulated":
            return None
        for memory in hardware().memory:
            if memory.device in self.workload.device:
                return memory
        return None

    def codec_seconds(self, method: TimedMethod) -> float:
        """Return the seconds of encoding, decoding and update that the model takes.

        For an emulated device of the table the bytes that the method moves over the device's memory
        bandwidth, else the line through what was timed here.

        Raises:
            ValueError: the table does not say what the method moves.
        """
        device = self.emulated_device
        if device is None:
            return self.host_codecs.get(method.name, 0.0)
        if method.name not in codec_bytes():
            raise ValueError(
                f"report/speed/codecs.toml has no codec_bytes of {method.name}; add what it moves"
            )
        num_bytes = codec_bytes()[method.name] * self.workload.num_parameters
        return num_bytes / device.bytes_per_second

    def predicted(self, timing: Timing, name: str) -> tuple[float, float]:
        """Return modelled seconds of a step as timed, and of its communication.

        NaN where no network like its was swept.
        """
        network = network_on(timing.fabric, self.fits)
        if network is None:
            return math.nan, math.nan
        method = next(method for method in timing.methods if method.name == name)
        step = self.seconds(method, network, codec=0.0)
        communication = step - self.workload.compute_seconds
        # The clock of an emulated step has no codec in it, that of a measured one this host's.
        if timing.basis == "measured":
            step += self.host_codecs.get(name, 0.0)
        return step, communication

    @property
    def is_modelled(self) -> bool:
        """Whether a network of the kind that it ran on was swept.

        Where not, there is nothing else to ask.
        """
        return network_on(self.main.fabric, self.fits) is not None

    def network(
        self,
        bits_per_second: float,
        layout: tuple[int, int] | None = None,
        inside_bits_per_second: float | None = None,
        algorithm: Algorithm = "ring",
    ) -> Network:
        """Return the network that a fabric would be whose links have these real rates.

        Its latency is the lab's over the dilation, and that is as in the timings, by logarithms
        between timed rates.

        Args:
            bits_per_second: of machines' links.
            layout: machines and workers a machine, by default that of the curves.
            inside_bits_per_second: of workers' links inside a machine; None for no limit.
            algorithm: of all-reduce.
        """
        fabric = self.main.fabric
        machines, workers = layout or fabric.layout
        # The model's latency is the lab's over the dilation, so that it takes the one of the timings.
        dilation = self._dilation_at(bits_per_second)
        inside = None
        if inside_bits_per_second:
            inside = inside_bits_per_second / dilation
        slowed = {
            "num_machines": machines,
            "workers_per_machine": workers,
            "bits_per_second": bits_per_second / dilation,
            "inside_bits_per_second": inside,
            "dilation": dilation,
        }
        network = network_on(fabric.model_copy(update=slowed), self.fits, algorithm)
        assert network is not None, (
            "a workload that cannot be modelled is not asked for a network"
        )
        return network

    def _dilation_at(self, bits_per_second: float) -> float:
        """Return the dilation at a real rate, straight in logarithms between timed rates."""
        if not self._dilations:
            return self.main.fabric.dilation
        log_rates = np.log(list(self._dilations.keys()))
        log_dilations = np.log(list(self._dilations.values()))
        return math.exp(np.interp(math.log(bits_per_second), log_rates, log_dilations))

    def seconds(
        self,
        method: TimedMethod,
        network: Network,
        slower: float = 1.0,
        codec: float | None = None,
    ) -> float:
        """Return modelled seconds of a step.

        Args:
            method: what is sent.
            network: where.
            slower: so many times slower is the device.
            codec: seconds of it; None takes the method's own.
        """
        if codec is None:
            codec = self.codec_seconds(method)
        compute = Compute(
            slower * self.workload.forward_seconds,
            slower * self.workload.backward_seconds,
            codec,
        )
        return period_seconds(compute, method.messages, method.period, network)


# A network is fitted anew for each rate, and all methods ask for the same rates.
@cache
def _network_at(model: WorkloadModel, bits_per_second: float) -> Network:
    return model.network(bits_per_second)


@cache
def seconds_at(
    model: WorkloadModel, method: str, bits_per_second: float, slower: float = 1.0
) -> float:
    """Return modelled seconds of a step of a method, by name, on the curves' layout.

    By a device so many times slower.
    """
    network = _network_at(model, bits_per_second)
    return model.seconds(model.methods[method], network, slower)


@dataclass(frozen=True)
class SpeedStudy:
    """A study's records, in the order of its lists, and what follows from them.

    `folder` is where they lie. `sessions` are of scored methods; `wide`, `consecutive` and `text` are on
    links of several latencies, the last two of steps in a row. `models` are the workloads', by name. `timed_steps` is
    `timed_steps_frame` of the timings with their predictions, which are `predicted_seconds`,
    `predicted_communication_seconds` and the relative errors of both, `error` and
    `communication_error`; nan where nothing was swept, or the clock had no communication.
    """

    folder: Path
    study: TimingStudy
    sweeps: tuple[Sweep, ...]
    timings: tuple[Timing, ...]
    sessions: tuple[Timing, ...]
    wide: tuple[Timing, ...]
    consecutive: tuple[Timing, ...]
    text: tuple[Timing, ...]
    fits: tuple[Fit, ...]
    models: dict[str, WorkloadModel]
    timed_steps: pd.DataFrame

    @property
    def attempts(self) -> list[Attempt]:
        """Attempts of all records, in the order of these fields."""
        timings = (
            *self.timings,
            *self.sessions,
            *self.wide,
            *self.consecutive,
            *self.text,
        )
        attempts = [sweep.attempt for sweep in self.sweeps]
        attempts += [timing.attempt for timing in timings]
        return attempts


def read_study(folder: Path) -> SpeedStudy:
    """Read a study, fit its sweeps, and compare the model with the measured times.

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
    sweeps = {folder / name: read_record(folder / name, Sweep) for name in study.sweeps}
    timings = _read_timings([folder / name for name in study.timings])
    # Sweeps predict these timings, so all of them must be of one machine.
    _refuse_mixed({**sweeps, **timings})
    # The study's own folder may hold sessions, too.
    sessions = {
        *folder.glob("scored-*.json"),
        *(folder.parent / SCORED_FOLDER).glob("scored-*.json"),
    }
    fits = tuple(fit for sweep in sweeps.values() for fit in fits_of(sweep))
    models = _models(tuple(timings.values()), fits)
    return SpeedStudy(
        folder=folder,
        study=study,
        sweeps=tuple(sweeps.values()),
        timings=tuple(timings.values()),
        sessions=_read_alike(sessions),
        wide=_read_alike(folder.glob("wide-*.json")),
        consecutive=_read_alike(folder.glob("consecutive-*.json")),
        text=_read_alike(folder.glob("text-*.json")),
        fits=fits,
        models=models,
        timed_steps=_predicted_steps(tuple(timings.values()), models),
    )


def _read_timings(paths: Iterable[Path]) -> dict[Path, Timing]:
    """Read timings, whose methods get the names that reports print."""
    timings = {}
    for path in paths:
        timing = read_record(path, Timing)
        methods = []
        for method in timing.methods:
            methods.append(method.model_copy(update={"label": timed_label(method)}))
        timings[path] = timing.model_copy(update={"methods": methods})
    return timings


def _read_alike(paths: Iterable[Path]) -> tuple[Timing, ...]:
    """Read timings in the order of their names, all of one machine."""
    timings = _read_timings(sorted(paths))
    _refuse_mixed(timings)
    return tuple(timings.values())


def _models(
    timings: Sequence[Timing], fits: tuple[Fit, ...]
) -> dict[str, WorkloadModel]:
    """Return the model of each workload that was timed, by its name."""
    by_workload: dict[str, list[Timing]] = {}
    for timing in timings:
        by_workload.setdefault(timing.workload.name, []).append(timing)
    models = {}
    for name, own_timings in by_workload.items():
        # The last record of a workload says its size, as it says all else of it.
        size = own_timings[-1].workload.num_parameters
        # From the timings of all workloads: each has one size, and a line needs two.
        codecs = _host_codecs(timings, size)
        models[name] = WorkloadModel(tuple(own_timings), fits, codecs)
    return models


def _predicted_steps(
    timings: Sequence[Timing], models: Mapping[str, WorkloadModel]
) -> pd.DataFrame:
    """Return `timed_steps_frame` with predictions and their errors; see `SpeedStudy`."""
    timed = timed_steps_frame(timings)
    steps = []
    communications = []
    # `timing` is a timing's place in the list.
    for number, name in zip(timed["timing"], timed["method"], strict=True):
        timing = timings[number]
        step, communication = models[timing.workload.name].predicted(timing, name)
        steps.append(step)
        communications.append(communication)
    timed["predicted_seconds"] = np.array(steps, dtype=float)
    timed["predicted_communication_seconds"] = np.array(communications, dtype=float)
    timed["error"] = timed["predicted_seconds"] / timed["seconds"] - 1
    # A step that sends nothing has a rounding error of communication, whose share says nothing.
    communicates = timed["communication_seconds"] > 1e-6 * timed["seconds"]
    measured = timed["communication_seconds"].where(communicates)
    timed["communication_error"] = (
        timed["predicted_communication_seconds"] / measured - 1
    )
    return timed


def _refuse_mixed(records: Mapping[Path, Sweep | Timing]) -> None:
    """Refuse times of two machines, or of two versions of torch: they cannot be compared."""
    machines = {path: _machine(record.attempt) for path, record in records.items()}
    for path, machine in machines.items():
        # All are compared with the first one.
        first, expected = next(iter(machines.items()))
        for name, value in machine.items():
            if value != expected[name]:
                raise RecordError(
                    f"{path} was timed on another machine than {first.name} ({name} {value}, not "
                    f"{expected[name]}); keep each machine's records in a study of their own"
                )


def _machine(attempt: Attempt) -> dict[str, str]:
    """Return what must be the same in times that are compared."""
    return {
        "host": attempt.host,
        "CPU": attempt.cpu,
        "torch": attempt.packages.get("torch", "unknown"),
    }


def _host_codecs(timings: Sequence[Timing], num_parameters: int) -> dict[str, float]:
    """Return the seconds of each method's codec at this size, of a worker with a core to itself.

    By the line through what was timed; of one size alone only its slope.
    """
    # By method's name: (parameters, seconds) of each workload that it was timed on.
    points: dict[str, list[tuple[int, float]]] = {}
    for timing in timings:
        size = timing.workload.num_parameters
        for method in timing.methods:
            if method.codec_alone_seconds:
                points.setdefault(method.name, []).append(
                    (size, method.codec_alone_seconds)
                )
    seconds = {}
    for name, pairs in points.items():
        sizes = [size for size, _ in pairs]
        times = [time for _, time in pairs]
        # A column of ones for the constant; of zeros, which leaves it 0, where there is one size.
        has_constant = float(len(set(sizes)) > 1)
        constant, slope = fit_line([has_constant] * len(sizes), sizes, times)
        seconds[name] = constant + slope * num_parameters
    return seconds
