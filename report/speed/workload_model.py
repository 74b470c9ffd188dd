"""The model of one workload's steps on any network, from its timings and the sweeps of the networks that it ran on."""

import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from harness.records.hardware import Memory, hardware
from harness.records.timings import Basis, Method, Timing, Workload
from report.speed.cost_model import Algorithm, Compute, Network, period_seconds
from report.speed.fitting import Fit, fit_line, fits_of, network_on
from report.speed.timed import SpeedRecords, cells_frame, read_speed_records


@cache
def codec_bytes() -> dict[str, float]:
    """Bytes that a method moves per parameter and step, by its name."""
    table: dict[str, float] = tomllib.loads((Path(__file__).parent / "codecs.toml").read_text())["codec_bytes"]
    return table


@dataclass(frozen=True, eq=False)
class WorkloadModel:
    """One workload: its timings and the fits that the model of it uses.

    `codec_lines` has, by a method's name, seconds and seconds a parameter of its codec as this host took them.
    """

    timings: tuple[Timing, ...]
    fits: tuple[Fit, ...]
    codec_lines: dict[str, tuple[float, float]]

    @property
    def workload(self) -> Workload:
        return self.timings[0].workload

    @property
    def basis(self) -> Basis:
        return self.timings[0].basis

    @property
    def compute_seconds(self) -> float:
        """Forward and backward pass of one worker's batch."""
        return self.workload.forward_seconds + self.workload.backward_seconds

    @cached_property
    def main(self) -> Timing:
        """The timing whose layout the curves take: one worker a machine where there is one, of the most methods."""
        return max(self.timings, key=lambda t: (t.fabric.workers_per_machine == 1, len(t.methods)))

    @cached_property
    def methods(self) -> dict[str, Method]:
        """Every method by name: those timed on the layout of the curves first, baselines before others."""
        found: dict[str, Method] = {}
        for timing in (self.main, *self.timings):
            for method in timing.methods:
                found.setdefault(method.name, method)
        return dict(sorted(found.items(), key=lambda pair: not pair[1].baseline))

    @cached_property
    def _dilations(self) -> dict[float, float]:
        """How many times slowed down each timed rate of the curves' layout was; of several timings that with the most
        methods, so that curves go through what is predicted of its points."""
        found: dict[float, float] = {}
        for timing in sorted(self.timings, key=lambda t: -len(t.methods)):
            bits = timing.fabric.stands_for_bits_per_second
            if bits and timing.fabric.layout == self.main.fabric.layout:
                found.setdefault(round(bits), timing.fabric.dilation)
        return dict(sorted(found.items()))

    def predicted(self, timing: Timing, name: str) -> tuple[float, float]:
        """Modelled seconds of a step on a timing's network as they compare with the clock, and of its communication.

        Both are nan where no network like it was swept.
        """
        network = network_on(timing.fabric, self.fits)
        if network is None:
            return math.nan, math.nan
        method = next(method for method in timing.methods if method.name == name)
        codec = self._host_codec(method) if timing.basis == "measured" else 0.0
        step = self._step(method, network, 1.0, 0.0)
        return step + codec, step - self.compute_seconds

    def _step(self, method: Method, network: Network, slower: float, codec: float) -> float:
        work = self.workload
        compute = Compute(slower * work.forward_seconds, slower * work.backward_seconds, codec)
        return period_seconds(compute, method.messages, method.period, network)

    def _host_codec(self, method: Method) -> float:
        constant, slope = self.codec_lines.get(method.name, (0.0, 0.0))
        return constant + slope * self.workload.num_parameters

    @property
    def emulated_device(self) -> Memory | None:
        """The memory of an emulated workload's device; None: it was measured, or nothing is published of its device."""
        devices = hardware().memory if self.basis == "emulated" else []
        return next((memory for memory in devices if memory.device in self.workload.device), None)

    def codec_seconds(self, method: Method) -> float:
        """Seconds of encoding, decoding and update that the model takes.

        For an emulated device of the table the bytes that the method moves over the device's memory bandwidth, else the
        line through what was timed here.

        Raises:
            ValueError: the table does not say what the method moves.
        """
        device = self.emulated_device
        if device is None:
            return self._host_codec(method)
        if method.name not in codec_bytes():
            raise ValueError(f"report/speed/codecs.toml has no codec_bytes of {method.name}; add what it moves")
        return codec_bytes()[method.name] * self.workload.num_parameters / device.bytes_per_second

    @property
    def is_modelled(self) -> bool:
        """Whether a network of the kind that it ran on was swept; where not, there is nothing else to ask."""
        return network_on(self.main.fabric, self.fits) is not None

    def network(
        self,
        bits_per_second: float,
        layout: tuple[int, int] | None = None,
        inside_bits_per_second: float | None = None,
        algorithm: Algorithm = "ring",
    ) -> Network:
        """The network that a fabric of these real rates would be, after the fits.

        Its latency is the lab's over the dilation, and that is as in the timings, by logarithms between timed rates.

        Args:
            bits_per_second: of a machine's link.
            layout: machines and workers a machine; None is that of the curves.
            inside_bits_per_second: of a worker's link inside its machine; None: no limit.
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
            "inside_bits_per_second": inside_bits_per_second / dilation if inside_bits_per_second else None,
            "dilation": dilation,
        }
        network = network_on(main.model_copy(update=slowed), self.fits, algorithm)
        assert network is not None, "a workload that cannot be modelled is not asked for a network"
        return network

    def seconds(self, method: Method, network: Network, slower: float = 1.0) -> float:
        """Modelled seconds of a step, the codec among them, on a device so many times slower."""
        return self._step(method, network, slower, self.codec_seconds(method))


@cache
def _network_at(model: WorkloadModel, bits_per_second: float) -> Network:
    return model.network(bits_per_second)


@cache
def seconds_at(model: WorkloadModel, method: str, bits_per_second: float, slower: float = 1.0) -> float:
    """Modelled seconds of a step of a method, by name, on the curves' layout at this rate of each machine's link.

    Args:
        slower: how many times slower the device's passes are.
    """
    return model.seconds(model.methods[method], _network_at(model, bits_per_second), slower)


@dataclass(frozen=True)
class SpeedStudy:
    """A study's records, its fits, the models of its workloads by name, and its timed cells beside their predictions.

    `cells` is `cells_frame` with `predicted_seconds`, `predicted_communication_seconds` and the relative errors of
    both, `error` and `communication_error`; nan where nothing was swept, or the clock had no communication.
    """

    records: SpeedRecords
    fits: tuple[Fit, ...]
    models: dict[str, WorkloadModel]
    cells: pd.DataFrame


def read_study(folder: Path) -> SpeedStudy:
    """Read a study, fit its sweeps and set the model beside the clock.

    Raises:
        UsageError: no such folder, or no study in it.
        RecordError: a record is damaged, or two are from different machines; the message names the file.
    """
    records = read_speed_records(folder)
    fits = tuple(fit for sweep in records.sweeps for fit in fits_of(sweep))
    cells = cells_frame(records.timings)
    groups: dict[str, list[Timing]] = {}
    for timing in records.timings:
        groups.setdefault(timing.workload.name, []).append(timing)
    lines = _codec_lines(records.timings)
    models = {name: WorkloadModel(tuple(group), fits, lines) for name, group in groups.items()}
    timed = [(records.timings[number], name) for number, name in zip(cells["timing"], cells["method"], strict=True)]
    predicted = [models[timing.workload.name].predicted(timing, name) for timing, name in timed]
    cells[["predicted_seconds", "predicted_communication_seconds"]] = np.array(predicted).reshape(-1, 2)
    cells["error"] = cells["predicted_seconds"] / cells["seconds"] - 1
    talk = cells["communication_seconds"].where(cells["communication_seconds"] > 1e-6 * cells["seconds"])
    cells["communication_error"] = cells["predicted_communication_seconds"] / talk - 1
    return SpeedStudy(records, fits, models, cells)


def _codec_lines(timings: Sequence[Timing]) -> dict[str, tuple[float, float]]:
    """Seconds and seconds a parameter of each method's codec, of a worker with a core to itself; of one size alone only
    the slope."""
    seen: dict[str, list[tuple[int, float]]] = {}
    for timing in timings:
        for method in timing.methods:
            if method.codec_alone_seconds:
                seen.setdefault(method.name, []).append((timing.workload.num_parameters, method.codec_alone_seconds))
    lines = {}
    for name, pairs in seen.items():
        sizes, times = zip(*pairs, strict=True)
        lines[name] = fit_line([float(len(set(sizes)) > 1)] * len(sizes), sizes, times)
    return lines
