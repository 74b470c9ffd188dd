"""README's tables: methods on images and on text, with what a step is worth and what it must be worth.

first_table.toml says which shipped runs stand for a method. What a step must be worth is emulated at
this very setting, or modelled from what these very runs sent, so that no cell mixes two settings.
"""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
from pydantic import Field

from cser_bench.harness.records.experiment import Row
from cser_bench.harness.records.shipped import SHIPPED, shipped_experiments
from cser_bench.harness.records.store import Record, read_optional, read_record
from cser_bench.harness.records.timings import EncodingTimes, TimedMethod, Timing
from cser_bench.report.efficiency import efficiency_draws
from cser_bench.report.efficiency_section import (
    BY_DEFINITION,
    curve_frames,
    drop_cell,
    efficiency_cell,
    efficiency_of,
)
from cser_bench.report.frame import Frames, read_frames
from cser_bench.report.predictions import judged_frame
from cser_bench.report.setting import key_of, setting_in_short
from cser_bench.report.speed.encoding import TIMES, encoding_of
from cser_bench.report.speed.job import (
    RESNET50,
    Sending,
    TrainingJob,
    ddp_seconds,
    method_seconds,
    sendings_of,
)
from cser_bench.report.speed.needed import FP16, FP32, needed_efficiency, needed_frame
from cser_bench.report.speed.two_stages import SESSIONS
from cser_bench.report.statistics import accuracy_frame
from cser_bench.report.wording import NONE, rate, traffic

TABLES = Path(__file__).with_suffix(".toml")

PREDICTIONS = SHIPPED / "statistics" / "dictionary_means.csv"
"""Efficiencies of GPTs on a dictionary, which predict those of another text."""

NOT_RUN = "not run"

POWERSGD = "ddp_powersgd"
"""What PyTorch's PowerSGD hook is called where steps are timed."""

NEEDED_AT = (1e9, 1e10)
"""Bandwidths of a machine's link at which a step has to be worth something, in bits a second."""


class MethodInTable(Record):
    """A method in a table: its name, the class one types, and a run of each network.

    predicted: its row in `PREDICTIONS`.
    setting_of: a run elsewhere that has its setting, where it was run on no network here.
    """

    label: str
    type: str = ""
    runs: list[str]
    predicted: str = ""
    setting_of: str = ""


class Table(Record):
    """A table of first_table.toml.

    page: the page that has it, from README's folder; README itself where empty.
    advice: the network, as `advise` calls it, whose methods these are; empty where it has none.
    has_needs: whether it shows what a step needs.
    """

    name: str
    page: str = ""
    advice: str = ""
    has_needs: bool = True
    unit: str
    networks: list[str]
    rows: list[MethodInTable] = Field(min_length=1)


class PredictedMethod(Record):
    """A prediction of table_gpt's spec, and a shipped run that has its setting.

    row: its name there. run: "experiment/row". efficiency: the value that was predicted. tolerance:
    of |ln(found / predicted)|.
    """

    label: str
    row: str
    run: str
    efficiency: float
    tolerance: float


class Panel(Record):
    """A panel of README's picture: the runs of each method's line, by falling traffic."""

    network: str
    lines: dict[str, list[str]]


@dataclass(frozen=True)
class MeasuredRow:
    """A row of a shipped experiment, and what is known of it.

    Attributes:
        traffic: what its link carries, as a share of the baseline's.
        drop: how far it scored below the baseline, with 95 % CI.
        efficiency: its statistical efficiency, with 95 % CI; a word where there is none.
        estimate, low, high: the same as numbers; NaN where it is a bound or not known.
        sendings: what a worker sent in a step.
        bytes_per_number: of DDP and its fp16 hook, whose messages overlap the backward pass; else 0.
        encoding_seconds: what encoding adds to a step of ResNet-50; NaN where not known.
    """

    row: Row
    traffic: float
    drop: str
    efficiency: str
    estimate: float
    low: float
    high: float
    sendings: tuple[Sending, ...]
    bytes_per_number: int
    encoding_seconds: float

    def step_seconds(self, job: TrainingJob) -> float:
        """Return the modelled step of a job that sends what the row sent, without encoding."""
        if self.bytes_per_number:
            return ddp_seconds(job, self.bytes_per_number)
        return method_seconds(job, self.sendings)


def tables() -> list[Table]:
    """Return the tables that first_table.toml describes."""
    described = tomllib.loads(TABLES.read_text())["tables"]
    return [Table.model_validate(table) for table in described]


def names_by_key(network: str) -> dict[str, str]:
    """Return the table's name of each of its settings, by `key_of`; empty where no table has any.

    Args:
        network: as `advise` calls it.
    """
    names: dict[str, str] = {}
    for table in tables():
        if table.advice != network:
            continue
        for method in table.rows:
            # An empty text stands for a network on which the method was not run.
            for run in filter(None, method.runs):
                frames, row = _row_of(run)
                names.setdefault(key_of(frames.experiment, row), method.label)
    return names


def predicted_methods() -> list[PredictedMethod]:
    """Return the predictions that first_table.toml describes."""
    described = tomllib.loads(TABLES.read_text())["predictions"]
    return [PredictedMethod.model_validate(method) for method in described]


def predictions_frame() -> pd.DataFrame:
    """Return what was predicted of efficiency, what was found, and the declared test, a line a method.

    Columns: method, predicted, found (with 95 % CI), log_ratio, p_holm, verdict, all but log_ratio and
    p_holm in words; `judged_frame` says what the last three are.
    """
    methods = predicted_methods()
    drawn = []
    for method in methods:
        frames, row = _row_of(method.run)
        drawn.append(efficiency_draws(frames, curve_frames(frames), row.row))
    judged = judged_frame(
        [method.efficiency for method in methods],
        [method.tolerance for method in methods],
        drawn,
    )
    lines = [
        {
            "method": method.label,
            "predicted": f"{method.efficiency:.3f}",
            "found": measured_row(method.run).efficiency,
        }
        for method in methods
    ]
    tested = judged[["log_ratio", "p_holm", "verdict"]]
    return pd.concat([pd.DataFrame(lines), tested], axis="columns")


def panels() -> list[Panel]:
    """Return the panels of the picture that first_table.toml describes."""
    described = tomllib.loads(TABLES.read_text())["panels"]
    return [Panel.model_validate(panel) for panel in described]


# An experiment stands for many methods, and is read once.
@cache
def _frames_of(experiment: str) -> Frames:
    folders = {folder.name: folder for folder in shipped_experiments()}
    return read_frames(folders[experiment])


def _row_of(run: str) -> tuple[Frames, Row]:
    """Return the experiment and the row of "experiment/row"."""
    experiment, _, name = run.partition("/")
    frames = _frames_of(experiment)
    return frames, next(row for row in frames.experiment.rows if row.row == name)


@cache
def measured_row(run: str) -> MeasuredRow:
    """Return what is known of a row, given as "experiment/row"."""
    frames, row = _row_of(run)
    name = row.row
    baseline = str(frames.experiment.baseline)
    # Index: row, of both.
    link_models = frames.by_row["link_models"]
    accuracy = accuracy_frame(frames).set_index("row", drop=False)
    planned = frames.rows[frames.rows["row"] == name].iloc[0]
    efficiency = _efficiency(frames, name)
    numbers = dict.fromkeys(("efficiency", "low", "high"), math.nan)
    if efficiency["kind"] == "estimate":
        numbers = efficiency
    drop = drop_cell(accuracy.loc[name].to_dict(), frames)
    by_efficiency = efficiency_cell(efficiency)
    # Methods of ours are modelled from what they sent; DDP and its hook send every gradient whole.
    bytes_per_number = 0
    if row.algorithm == "sgd" and row.wire == "fp16":
        bytes_per_number = 2
    if name == baseline:
        drop = NONE
        by_efficiency = BY_DEFINITION
        bytes_per_number = 4
    return MeasuredRow(
        row=row,
        traffic=link_models[name] / link_models[baseline],
        drop=drop,
        efficiency=by_efficiency,
        estimate=numbers["efficiency"],
        low=numbers["low"],
        high=numbers["high"],
        sendings=tuple(sendings_of(frames, planned)),
        bytes_per_number=bytes_per_number,
        encoding_seconds=_encoding_of_row(row),
    )


def _efficiency(frames: Frames, name: str) -> dict[str, Any]:
    """Return a row's line of `efficiency_frame`, by the first score that it has an efficiency by."""
    # A line by each score, the test loss first.
    table = efficiency_of(frames)
    of_row = table[table["row"] == name]
    if of_row.empty:
        return {"kind": "none", "reason": "curve not run"}
    return {str(key): value for key, value in of_row.iloc[0].items()}


def _encoding_of_row(row: Row) -> float:
    """Return the seconds that a row's encoding adds to a step of ResNet-50; NaN where not known."""
    if row.algorithm == "alone":
        return 0.0
    if row.algorithm == "sgd":
        return _encoding_seconds(_timed_algorithm(row), {})
    return _encoding_seconds(row.algorithm, row.settings)


def _timed_algorithm(row: Row) -> str:
    """Return what a row's algorithm is called where steps are timed: SGD is DDP there.

    PowerSGD stands for PyTorch's hook, which it equals.
    """
    if row.algorithm == "powersgd":
        return POWERSGD
    if row.algorithm != "sgd":
        return row.algorithm
    if row.wire == "fp16":
        return FP16
    return FP32


def _encoding_seconds(algorithm: str, settings: dict[str, Any]) -> float:
    """Return the seconds that encoding adds to a step of ResNet-50 on a V100; NaN where not known."""
    # Encoding takes what a method does to its vectors, so all that says what it sends is left empty.
    timed = TimedMethod(
        name=algorithm,
        label=algorithm,
        algorithm=algorithm,
        settings=settings,
        momentum=0.0,
        rows=[],
        baseline=False,
        overlap=False,
        period=1,
        messages=[],
    )
    workload = timed_sessions()[0].workload
    measured = read_optional(TIMES, EncodingTimes)
    encoding = encoding_of(timed, workload, RESNET50.num_workers, measured)
    if encoding is None:
        return math.nan
    return encoding.seconds


def table_frame(table: Table) -> pd.DataFrame:
    """Return a table's cells, a line a method.

    Columns: method, setting, traffic, `predicted` where the table has such, an efficiency a network
    where one is known, what a step of ResNet-50 needs to tie with DDP's fp16 hook (`NEEDED_AT`),
    and the drop on the first network. Without `has_needs` the needs are left out.
    """
    lines = []
    for method in table.rows:
        # A setting that one network lacks is the other's.
        runs = filter(None, (*method.runs, method.setting_of))
        shown = measured_row(next(runs))
        cells = {
            "method": method.label,
            "setting": _typed(method, shown),
            "traffic": traffic(shown.traffic),
        }
        if any(other.predicted for other in table.rows):
            cells["predicted"] = _predicted(method)
        for network, run in zip(table.networks, method.runs, strict=True):
            cells[network] = NOT_RUN
            if run:
                cells[network] = measured_row(run).efficiency
        if table.has_needs:
            cells |= _needs(shown)
        cells["drop"] = NOT_RUN
        if method.runs[0]:
            cells["drop"] = measured_row(method.runs[0]).drop
        lines.append(cells)
    unknown = [table.networks[place] for place in _without_curve(table)]
    return pd.DataFrame(lines).drop(columns=unknown)


def _without_curve(table: Table) -> list[int]:
    """Return the places of the networks on which no method has an efficiency."""
    places = []
    for place in range(len(table.networks)):
        runs = [method.runs[place] for method in table.rows if method.runs[place]]
        if all(math.isnan(measured_row(run).estimate) for run in runs):
            places.append(place)
    return places


def _predicted(method: MethodInTable) -> str:
    """Return the efficiency that was predicted for a method, with 95 % CI."""
    if not method.predicted:
        return NONE
    # Columns: efficiency, low, high, as a line of `efficiency_frame` has them.
    means = pd.read_csv(PREDICTIONS, index_col="row")
    line = means.loc[method.predicted].to_dict() | {"kind": "estimate"}
    return efficiency_cell(line)


def _typed(method: MethodInTable, measured: MeasuredRow) -> str:
    """Return the class of a method and its setting, in type of a fixed width."""
    words = [
        word
        for word in (method.type, setting_in_short(measured.row))
        if word not in ("", NONE)
    ]
    if not words:
        return NONE
    return f"`{', '.join(words)}`"


def _needs(measured: MeasuredRow) -> dict[str, str]:
    """Return what a row's step must be worth to tie with the hook's, encoding included."""
    cells = {}
    for bandwidth in NEEDED_AT:
        needed = need_of(measured, bandwidth)
        text = NONE
        if not math.isnan(needed):
            text = f"{needed:.2f}"
        cells[f"needs at {rate(bandwidth)}"] = text
    return cells


def need_of(measured: MeasuredRow, bandwidth: float) -> float:
    """Return the needed efficiency: emulated where this very message was timed, else modelled."""
    timed = timed_as(measured.row)
    if timed is not None:
        return emulated_need(timed.name, bandwidth)
    job = replace(RESNET50, bits_per_second=bandwidth)
    seconds = measured.step_seconds(job)
    # The hook sends two bytes a number.
    hook_seconds = ddp_seconds(job, 2)
    every_step = _emulated_every_step(measured, bandwidth)
    if every_step is not None:
        # Both are of the same session.
        seconds, hook_seconds = every_step
    return needed_efficiency(
        seconds, hook_seconds, measured.encoding_seconds, _encoding_seconds(FP16, {})
    )


def emulated_need(method: str, bandwidth: float) -> float:
    """Return what a timed method's step needs at a bandwidth in bits a second, encoding included."""
    # Columns of `needed_frame`; a line a method and rate.
    needs = emulated_needs()
    is_it = (needs["method"] == method) & (needs["bits_per_second"] == bandwidth)
    return float(needs.loc[is_it, "needed_fp16_encoded"].iloc[0])


def timed_as(row: Row) -> TimedMethod | None:
    """Return the timed method that has a row's setting; None where no session has it."""
    wanted = (_timed_algorithm(row), row.settings)
    for session in timed_sessions():
        for method in session.methods:
            if (method.algorithm, method.settings) == wanted:
                return method
    return None


def _emulated_every_step(
    measured: MeasuredRow, bandwidth: float
) -> tuple[float, float] | None:
    """Return the emulated step of a row that sends one message in each, and the fp16 hook's.

    The step is the one of a timed method that sends this very message, where it sends that alone and
    in some of its steps. None where no session has such a step.
    """
    if [sending.share_of_steps for sending in measured.sendings] != [1.0]:
        return None
    for session in timed_sessions():
        hook = next(method for method in session.methods if method.algorithm == FP16)
        hook_seconds = _sending_step(session, hook, bandwidth)
        for method in session.methods:
            if not _sends_message_of(method, measured.row):
                continue
            seconds = _sending_step(session, method, bandwidth)
            if seconds is not None and hook_seconds is not None:
                return seconds, hook_seconds
    return None


def _sends_message_of(method: TimedMethod, row: Row) -> bool:
    """Tell whether the one message of a timed method is compressed as a row's is."""
    compressors = _compressors(row.settings)
    is_same = compressors == _compressors(method.settings)
    return bool(compressors) and is_same and len(method.messages) == 1


def _compressors(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the compressors among settings, but for one that sends nothing."""
    kinds = [value for value in settings.values() if isinstance(value, dict)]
    return [each for each in kinds if each.get("kind") != "zero"]


def _sending_step(
    session: Timing, method: TimedMethod, bandwidth: float
) -> float | None:
    """Return the mean seconds of a method's steps that send; None where not timed at the bandwidth."""
    for timed in session.timed_steps:
        if timed.method == method.name and timed.bits_per_second == bandwidth:
            return fmean(timed.seconds)
    return None


@cache
def timed_sessions() -> tuple[Timing, ...]:
    """Return the records of `SESSIONS`."""
    return tuple(read_record(path, Timing) for path in SESSIONS)


@cache
def emulated_needs() -> pd.DataFrame:
    """Return `needed_frame` of the sessions of the table's settings."""
    return needed_frame(timed_sessions())
