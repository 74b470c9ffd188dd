"""What a study's records say together: per workload its methods, its timed steps, and the model of them."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np

from harness.records.hardware import Memory, memories
from harness.records.timings import Basis, Fabric, Method, Timing, Workload
from report.speed.cost_model import Algorithm, Compute, Network, period_seconds
from report.speed.fitting import Fit, fit_line, fits_of, layout_of, like, network_on, slowest_limit, sped_up
from report.speed.records import SpeedRecords
from report.speed.steps import Timed, timed
from report.speed.units import rate

_HERE = Path(__file__).parent

_CROWDED = 0.15
"""Share of the slowed passes beyond which a codec that hides behind them no longer fits, on these cores."""
_ENCODES = 2.5
"""Baselines of a larger ratio encode behind the backward pass; an fp16 hook's ratio is 2."""

_NOTHING = 1e-6
"""A smaller share of a step is no time at all."""


@cache
def codec_bytes() -> dict[str, float]:
    """Bytes that a method moves per parameter and step, by its name."""
    table: dict[str, float] = tomllib.loads((_HERE / "codecs.toml").read_text())["codec_bytes"]
    return table


@dataclass(frozen=True)
class Point:
    """One method on one fabric: what the clock said, and what the model says of the same (None without a sweep)."""

    timing: Timing
    method: Method
    timed: Timed
    predicted: float | None
    predicted_communication: float | None
    """Of the predicted step, what is neither passes nor codec."""

    @property
    def error(self) -> float | None:
        """Of the whole step, predicted over timed, less one."""
        return None if self.predicted is None else self.predicted / self.timed.seconds - 1

    @property
    def communication(self) -> float:
        """Seconds of the timed step in which nothing is computed: waiting, and transfer that was not hidden."""
        codec = self.timed.codec if self.timing.basis == "measured" else 0.0
        return self.timed.seconds - self.timed.compute - codec

    @property
    def is_crowded(self) -> bool:
        """Whether the clock is slowed too little for codecs that should hide behind the passes, so that they do not."""
        slowed = self.timing.fabric.dilation * self.timed.compute
        encodes = self.method.baseline and self.method.ratio > _ENCODES
        return self.timing.basis == "emulated" and encodes and self.timed.codec > _CROWDED * slowed

    @property
    def communication_error(self) -> float | None:
        """Of the communication time, predicted over timed, less one; infinite where the clock had none."""
        if self.predicted_communication is None:
            return None
        if not self.communicates:
            return 0.0 if self.predicted_communication <= _NOTHING * self.timed.seconds else math.inf
        return self.predicted_communication / self.communication - 1

    @property
    def communicates(self) -> bool:
        """Whether the clock had any communication that was not hidden."""
        return self.communication > _NOTHING * self.timed.seconds

    @property
    def null_error(self) -> float:
        """Of the whole step, by a model that predicts no communication."""
        return -max(self.communication, 0.0) / self.timed.seconds


@dataclass(frozen=True)
class Bench:
    """One workload: its timings and the fits that the model of it uses."""

    timings: tuple[Timing, ...]
    fits: tuple[Fit, ...]
    codec_lines: dict[str, tuple[float, float]]

    @property
    def workload(self) -> Workload:
        return self.timings[0].workload

    @property
    def basis(self) -> Basis:
        return self.timings[0].basis

    @cached_property
    def main(self) -> Timing:
        """The timing whose layout the curves take: one worker a machine where there is one, of the most methods."""
        return max(self.timings, key=lambda t: (t.fabric.workers_per_machine == 1, len(t.methods)))

    @cached_property
    def curve(self) -> tuple[Timing, ...]:
        """Timings of the curves' layout, one of each rate, slow to fast; of several that with the most methods."""
        layout, found = layout_of(self.main.fabric), dict[float, Timing]()
        for timing in sorted(self.timings, key=lambda t: -len(t.methods)):
            bits = timing.fabric.stands_for_bits_per_second
            if bits and layout_of(timing.fabric) == layout:
                found.setdefault(round(bits), timing)
        return tuple(found[bits] for bits in sorted(found))

    def timing_at(self, bits_per_second: float) -> Timing | None:
        """The curve's timing at this rate, if there is one."""
        return next((t for t in self.curve if is_near(t.fabric.stands_for_bits_per_second, bits_per_second)), None)

    @cached_property
    def ordered(self) -> tuple[Timing, ...]:
        """As tables have them: most machines first, then slow links to fast, then long latencies to short."""
        return tuple(
            sorted(
                self.timings,
                key=lambda t: (
                    -t.fabric.num_machines,
                    round(t.fabric.stands_for_bits_per_second or 0.0),
                    t.fabric.dilation,
                ),
            )
        )

    @cached_property
    def latencies(self) -> tuple[tuple[Timing, Timing], ...]:
        """Pairs of timings of the same links at another latency: one of the curve, and one that is not."""
        layout, found = layout_of(self.main.fabric), list[tuple[Timing, Timing]]()
        for timing in self.timings:
            bits = timing.fabric.stands_for_bits_per_second
            if bits is None or layout_of(timing.fabric) != layout or any(timing is each for each in self.curve):
                continue
            found += [(each, timing) for each in self.curve if is_near(each.fabric.stands_for_bits_per_second, bits)]
        return tuple(found)

    def hop_seconds(self, timing: Timing) -> float | None:
        """Latency of a hop of an all-reduce, on the device's clock; None where no network like it was swept."""
        network = network_on(timing.fabric, self.fits)
        return network.links["all_reduce"].between.alpha / timing.fabric.dilation if network else None

    def name_of(self, timing: Timing) -> str:
        """ "8 x 1, 10 Gb/s": its fabric's, with the latency where another timing of the workload is called so."""
        name, hop = fabric_name(timing.fabric), self.hop_seconds(timing)
        if sum(fabric_name(each.fabric) == name for each in self.timings) < 2:
            return name
        slowed = f"slowed {timing.fabric.dilation:.4g} times"
        return f"{name}, {slowed if hop is None else f'{1e6 * hop:.3g} µs a hop'}"

    @cached_property
    def methods(self) -> tuple[Method, ...]:
        """Every method timed on the layout of the curves and then any other: baselines first, else in their order."""
        ordered = [self.main, *self.timings]
        found = {method.name: method for timing in reversed(ordered) for method in timing.methods}
        names = dict.fromkeys(method.name for timing in ordered for method in timing.methods)
        return tuple(sorted((found[name] for name in names), key=lambda method: not method.baseline))

    @property
    def baselines(self) -> tuple[Method, ...]:
        return tuple(method for method in self.methods if method.baseline)

    @property
    def compared(self) -> tuple[Method, ...]:
        return tuple(method for method in self.methods if not method.baseline)

    def method(self, name: str) -> Method | None:
        """The method of that name, if it was timed."""
        return next((method for method in self.methods if method.name == name), None)

    @cached_property
    def points(self) -> tuple[Point, ...]:
        """Every method of every timing that has its steps, in the order of the records."""
        return tuple(
            Point(timing, method, numbers, *self._predicted(timing, method))
            for timing in self.timings
            for method in timing.methods
            if (numbers := timed(timing, method))
        )

    def point(self, timing: Timing, name: str) -> Point | None:
        """The method of that name in a timing, if its steps are there."""
        return self._by_name.get((id(timing), name))

    @cached_property
    def _by_name(self) -> dict[tuple[int, str], Point]:
        return {(id(point.timing), point.method.name): point for point in self.points}

    def _predicted(self, timing: Timing, method: Method) -> tuple[float | None, float | None]:
        """Of a step, and of its communication."""
        network = network_on(timing.fabric, self.fits)
        if network is None:
            return None, None
        codec = self._measured_codec(method) if timing.basis == "measured" else 0.0
        step = self.network_seconds(method, sped_up(network, timing.fabric.dilation))
        return step + codec, step - self.workload.forward_seconds - self.workload.backward_seconds

    def predicted(self, timing: Timing, method: Method) -> float | None:
        """Modelled seconds of a step on a timing's network, as they compare with the clock; None without a sweep."""
        return self._predicted(timing, method)[0]

    def network_seconds(self, method: Method, network: Network) -> float:
        """Modelled seconds of a step without its codec."""
        return period_seconds(self._compute(0.0), method.messages, method.period, network)

    def _compute(self, codec: float) -> Compute:
        return Compute(self.workload.forward_seconds, self.workload.backward_seconds, codec)

    def _measured_codec(self, method: Method) -> float:
        constant, slope = self.codec_lines.get(method.name, (0.0, 0.0))
        return constant + slope * self.workload.num_parameters

    @property
    def emulated_device(self) -> Memory | None:
        """The memory of an emulated workload's device; None: it was measured, or nothing is published of its device."""
        devices = memories() if self.basis == "emulated" else []
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
            return self._measured_codec(method)
        moved = codec_bytes()
        if method.name not in moved:
            raise ValueError(f"report/speed/codecs.toml has no codec_bytes of {method.name}; add what it moves")
        return float(moved[method.name] * self.workload.num_parameters / device.bytes_per_second)

    def network(
        self,
        bits_per_second: float,
        layout: tuple[int, int] | None = None,
        inside_bits_per_second: float | None = None,
        algorithm: Algorithm = "ring",
    ) -> Network | None:
        """The network that a fabric of these real rates would be, after the fits; None where nothing was swept.

        Args:
            bits_per_second: of a machine's link.
            layout: machines and workers a machine; None is that of the curves.
            inside_bits_per_second: of a worker's link inside its machine.
        """
        main = self.main.fabric
        machines, workers = layout or (main.num_machines, main.workers_per_machine)
        inside = inside_bits_per_second if layout else bits_inside(main)
        dilation = self._dilation(bits_per_second)
        slowed = main.model_copy(
            update={
                "num_machines": machines,
                "workers_per_machine": workers,
                "bits_per_second": bits_per_second / dilation,
                "inside_bits_per_second": inside / dilation if inside else None,
            }
        )
        network = network_on(slowed, self.fits, algorithm)
        return network and sped_up(network, dilation)

    def _dilation(self, bits_per_second: float) -> float:
        """How many times slowed down the lab is that stands for such links: as in the timings, by logarithms between.

        It decides the latency, which is the lab's over the dilation; so curves go through what is predicted of points.
        """
        found = {
            math.log(bits): math.log(timing.fabric.dilation)
            for timing in self.curve
            if (bits := timing.fabric.stands_for_bits_per_second)
        }
        if not found:
            return self.main.fabric.dilation
        logs = sorted(found)
        return math.exp(np.interp(math.log(bits_per_second), logs, [found[log] for log in logs]))

    @property
    def is_modelled(self) -> bool:
        """Whether a network of the kind that it ran on was swept."""
        return bool(like(self.main.fabric, self.fits))

    @cached_property
    def _known(self) -> dict[tuple[str, float], float]:
        return {}

    def seconds_at(self, method: Method, bits_per_second: float) -> float:
        """Modelled seconds of a step on the curves' layout at this rate of each machine's link.

        Raises:
            ValueError: nothing was swept, so nothing can be modelled.
        """
        key = (method.name, bits_per_second)
        if key not in self._known:
            network = self.network(bits_per_second)
            if network is None:
                raise ValueError("there is no sweep to model a network from; make speedups takes one")
            self._known[key] = self.seconds(method, network)
        return self._known[key]

    def clock_seconds(self, method: Method, bits_per_second: float) -> float:
        """The same as it compares with the clock: without the codec where steps were emulated."""
        return self.seconds_at(method, bits_per_second) - self.codec_seconds(method) * (self.basis == "emulated")

    def seconds(self, method: Method, network: Network, slower: float = 1.0) -> float:
        """Modelled seconds of a step, the codec among them, on a device so many times slower."""
        compute = self._compute(self.codec_seconds(method)).scaled(slower)
        return period_seconds(compute, method.messages, method.period, network)


def fabric_name(fabric: Fabric) -> str:
    """ "8 x 1, 200 Mb/s": machines, workers a machine, and the rate that the slowest link stands for."""
    limit = slowest_limit(fabric)
    return f"{fabric.num_machines} x {fabric.workers_per_machine}, {rate(limit and limit * fabric.dilation)}"


def is_near(bits_per_second: float | None, wanted: float) -> bool:
    """Whether two rates are the same but for rounding."""
    return bits_per_second is not None and abs(bits_per_second / wanted - 1) < 0.01


def bits_inside(fabric: Fabric) -> float | None:
    """The rate that a link inside a machine stands for."""
    inside = fabric.inside_bits_per_second
    return None if inside is None else inside * fabric.dilation


@dataclass(frozen=True)
class SpeedStudy:
    """A study's records with its fits, and its workloads in the order of the records."""

    records: SpeedRecords
    fits: tuple[Fit, ...]
    benches: tuple[Bench, ...]

    @property
    def points(self) -> tuple[Point, ...]:
        return tuple(point for bench in self.benches for point in bench.points)


def study_of(records: SpeedRecords) -> SpeedStudy:
    """Fit the sweeps and gather the timings by workload."""
    fits = tuple(fit for sweep in records.sweeps for fit in fits_of(sweep))
    lines = _codec_lines(records.timings)
    groups: dict[tuple[str, Basis], list[Timing]] = {}
    for timing in records.timings:
        groups.setdefault((timing.workload.name, timing.basis), []).append(timing)
    return SpeedStudy(records, fits, tuple(Bench(tuple(group), fits, lines) for group in groups.values()))


def _codec_lines(timings: Sequence[Timing]) -> dict[str, tuple[float, float]]:
    """Seconds and seconds a parameter of each method's codec; of one size alone only the slope.

    By the clock, of a worker that had a core to itself where that was timed, else in the timed steps.
    """
    seen: dict[str, list[tuple[int, float]]] = {}
    for timing in timings:
        for method in timing.methods:
            numbers = timed(timing, method)
            alone = method.codec_alone_seconds
            seconds = alone if alone is not None else numbers.codec if numbers else 0.0
            if seconds > 0:
                seen.setdefault(method.name, []).append((timing.workload.num_parameters, seconds))
    lines = {}
    for name, pairs in seen.items():
        sizes, times = [size for size, _ in pairs], [time for _, time in pairs]
        constants = [float(len(set(sizes)) > 1)] * len(sizes)
        lines[name] = fit_line(constants, sizes, times)
    return lines
