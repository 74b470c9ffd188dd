"""The advice itself: every method and ratio on the job, and one sentence that recommends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from report.accuracy.records import RowRuns, UsageError
from report.accuracy.regime import Regime
from report.accuracy.regime_predictors import best_predictor
from report.advice.job import TrainingJob
from report.advice.loss import Loss, expected_loss
from report.advice.steps import ddp_seconds, method_seconds, sent_by
from report.kit.wording import amount, points, ratio_name, short
from report.speed.units import factor, milliseconds

WORTH = 1.05
"""A method is recommended over DDP where its step is so many times as fast, or more."""


@dataclass(frozen=True)
class Advised:
    """One line: a method at a ratio, or DDP, whose loss is none by definition (fp32) or taken as none (fp16)."""

    method: str
    ratio: float | None
    settings: str
    step_seconds: float
    models: float
    loss: Loss | None


@dataclass(frozen=True)
class Advice:
    """All lines, the fastest first, with the gap that turns a share lost into points, and what is recommended."""

    job: TrainingJob
    gap: float
    lines: tuple[Advised, ...]
    sentence: str
    where: str
    """What the map was made of, and how far the job is from that."""


def advise(
    job: TrainingJob, regime: Regime, rows: Sequence[RowRuns], num_parameters: int, num_workers: int | None = None
) -> Advice:
    """Advice from an experiment's regime map and the traffic of its rows at the main length.

    Args:
        rows: of the experiment's own length.
        num_parameters, num_workers: of the experiment; None where it is not known.

    Raises:
        UsageError: the map has no length that can tell a loss.
    """
    if not regime.telling:
        raise UsageError("the regime map has no length that can tell a loss; give another experiment with --map")
    gap = job.gap if job.gap is not None else regime.telling[0].gap or 0.0
    lines = [
        Advised("DDP, fp32", 1.0, "overlapped", ddp_seconds(job, 4), job.num_steps, Loss(0.0, 0.0, 0.0, 1.0)),
        Advised("DDP, fp16 hook", 2.0, "overlapped", ddp_seconds(job, 2), job.num_steps / 2, Loss(0.0, 0.0, 0.0, 1.0)),
    ]
    predictor = best_predictor(regime)
    for each in rows:
        sent = sent_by(each)
        if sent is None or each.method not in regime.methods:
            continue
        models = sent.models(job.num_steps)
        loss = expected_loss(regime, each.method, models, job.num_steps, predictor)
        lines.append(Advised(each.method, each.row.ratio, each.row.words, method_seconds(job, sent), models, loss))
    lines.sort(key=lambda line: (line.step_seconds, line.method))
    where = _where(job, regime, (num_parameters, num_workers), predictor)
    return Advice(job, gap, tuple(lines), _sentence(job, gap, lines), where)


def _sentence(job: TrainingJob, gap: float, lines: Sequence[Advised]) -> str:
    base = min((line for line in lines if line.method.startswith("DDP")), key=lambda line: line.step_seconds)
    safe = [line for line in lines if line.loss and gap * line.loss.high <= job.margin]
    best = min(safe, key=lambda line: (line.step_seconds, -line.models))
    # Of lines that are about as fast as the fastest, the one that sends most is the safest.
    near = [line for line in safe if line.step_seconds <= WORTH * best.step_seconds]
    best = max(near, key=lambda line: line.models)
    if base.step_seconds < WORTH * best.step_seconds or best.method.startswith("DDP"):
        return (
            f"Use plain {base.method}: its step takes {milliseconds(base.step_seconds)} ms, and no method that is "
            f"expected to lose at most {_points(job.margin)} points is more than {100 * (WORTH - 1):.0f} % faster."
        )
    assert best.loss
    gain, far = base.step_seconds / best.step_seconds, f"; {_far(best.loss)}" if best.loss.beyond > 1 else ""
    return (
        f"Use {best.method} at ratio {ratio_name(best.ratio or 1)}: a modelled step of "
        f"{milliseconds(best.step_seconds)} ms is {factor(gain)} as fast as {base.method} "
        f"({milliseconds(base.step_seconds)} ms), and of {amount(best.models)} models sent the map expects a loss of "
        f"{_points(gap * best.loss.share)} points, at most {_points(gap * best.loss.high)}{far}."
    )


def _far(loss: Loss) -> str:
    return f"this is {short(loss.beyond, 2)} times beyond what was run"


def _points(share: float) -> str:
    return points(share).lstrip("+")


def _where(job: TrainingJob, regime: Regime, size: tuple[int, int | None], predictor: str) -> str:
    num_parameters, num_workers = size
    steps = [length.num_steps for length in regime.telling]
    larger, longer = job.num_parameters / num_parameters, job.num_steps / max(steps)
    workers = f", and {job.num_workers} workers where that had {num_workers}" if num_workers else ""
    return (
        f"The map is of a network of {num_parameters:,} parameters, {len(regime.telling)} lengths from {min(steps):,} "
        f"to {max(steps):,} steps, fixed shards. This job has {amount(larger)} times the parameters, and "
        f"{amount(longer)} times the steps of the longest{workers}. Losses are predicted from {predictor}, which does "
        "best at lengths that it was not shown. Whether they carry over to other networks was not tested. Step "
        "times are modelled, without encoding. DDP with fp16 is taken to lose nothing."
    )
