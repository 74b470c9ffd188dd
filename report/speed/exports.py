"""The CSV files of a study: every number of the report at full precision."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median

from harness.records.timings import Fabric
from report.accuracy.exports import Value, write_csv
from report.accuracy.records import Records
from report.speed.fitting import slowest_limit
from report.speed.speedups import CLEARLY, EVEN, HIGHEST, LOWEST, faster_spans, log_grid
from report.speed.study import Bench, SpeedStudy
from report.speed.to_target import benches_for, row_steps, rows_for, targets_of

_FABRIC = ("machines", "workers_per_machine", "bits_per_second", "inside_bits_per_second", "dilation")


def write_speed_exports(folder: Path, study: SpeedStudy, accuracy: Sequence[Records]) -> None:
    """Write csv/*.csv.

    Raises:
        OSError: the folder cannot be written.
    """
    write_csv(folder / "step_times.csv", _STEP_TIMES, _step_times(study))
    write_csv(folder / "sweeps.csv", _SWEEPS, _sweeps(study))
    write_csv(folder / "fits.csv", _FITS, _fits(study))
    write_csv(folder / "modelled.csv", ("workload", "basis", "method", "bits_per_second", "seconds"), _modelled(study))
    write_csv(folder / "break_even.csv", _BREAK_EVEN, _break_even(study))
    write_csv(folder / "steps_to_target.csv", _TO_TARGET, _to_target(study, accuracy))


_STEP_TIMES = (
    *("workload", "basis", *_FABRIC, "method", "seconds", "low", "high", "predicted_seconds", "relative_error"),
    *("compute_seconds", "codec_seconds", "waiting_seconds", "transfer_seconds", "steps"),
    *("communication_seconds", "predicted_communication_seconds"),
)


def _step_times(study: SpeedStudy) -> Iterable[Sequence[Value]]:
    for point in study.points:
        numbers, fabric = point.timed, point.timing.fabric
        yield (
            point.timing.workload.name,
            point.timing.basis,
            *_of(fabric),
            point.method.name,
            *(numbers.seconds, numbers.low, numbers.high, point.predicted, point.error),
            *(numbers.compute, numbers.codec, numbers.waiting, numbers.transfer, numbers.num_steps),
            *(point.communication, point.predicted_communication),
        )


def _of(fabric: Fabric) -> tuple[Value, ...]:
    place = (fabric.num_machines, fabric.workers_per_machine, fabric.bits_per_second)
    return (*place, fabric.inside_bits_per_second, fabric.dilation)


_SWEEPS = (
    *(*_FABRIC, "collective", "payload_bytes", "median_seconds", "repetitions"),
    *("wire_bytes", "formula_bytes", "wire_frames"),
)


def _sweeps(study: SpeedStudy) -> Iterable[Sequence[Value]]:
    for sweep in study.records.sweeps:
        for point in sweep.points:
            yield (
                *_of(sweep.fabric),
                *(point.collective, point.payload_bytes, median(point.seconds), len(point.seconds)),
                *(point.wire_bytes, point.formula_bytes, point.wire_frames),
            )


_FITS = (
    *("machines", "workers_per_machine", "limit_bits_per_second", "collective", "alpha_seconds"),
    *("beta_seconds_per_byte", "efficiency", "worst_relative_error"),
)


def _fits(study: SpeedStudy) -> Iterable[Sequence[Value]]:
    for fit in study.fits:
        fabric = fit.fabric
        place = (fabric.num_machines, fabric.workers_per_machine, slowest_limit(fabric))
        yield (*place, fit.collective, fit.link.alpha, fit.link.beta, fit.efficiency, fit.worst)


def _modelled(study: SpeedStudy) -> Iterable[Sequence[Value]]:
    for bench in study.benches:
        for bits in log_grid(LOWEST, HIGHEST):
            for method in bench.methods if bench.is_modelled else ():
                yield (*_names(bench), method.name, bits, bench.seconds_at(method, bits))


_BREAK_EVEN = (
    *("workload", "basis", "method", "baseline", "more_than_times_as_fast"),
    *("from_bits_per_second", "to_bits_per_second"),
)
_FACTORS = (1.0, EVEN, CLEARLY)


def _break_even(study: SpeedStudy) -> Iterable[Sequence[Value]]:
    for bench in study.benches:
        for method in bench.compared if bench.is_modelled else ():
            for baseline in bench.baselines:
                for factor in _FACTORS:
                    for span in faster_spans(bench, method, baseline, factor):
                        yield (*_names(bench), method.name, baseline.name, factor, span.low, span.high)


def _names(bench: Bench) -> tuple[str, str]:
    return bench.workload.name, bench.basis


_TO_TARGET = ("experiment", "workload", "method", "target", "row", "seed", "steps")


def _to_target(study: SpeedStudy, accuracy: Sequence[Records]) -> Iterable[Sequence[Value]]:
    for records in accuracy:
        for bench in benches_for(study, records):
            for target in targets_of(records):
                for method in bench.methods:
                    rows = rows_for(records, method)
                    for seed, steps in row_steps(rows, target).by_seed.items() if rows else ():
                        said = int(steps) if math.isfinite(steps) else "infinite"
                        yield (
                            records.experiment.name, bench.workload.name, method.name, target,
                            rows.row.row if rows else "", seed, said,
                        )  # fmt: skip
