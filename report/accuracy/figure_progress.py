"""Figure: test accuracy and training loss over steps."""

from __future__ import annotations

from pathlib import Path

from harness.records.metrics import score_in
from harness.records.store import Event
from report.accuracy.figure_curves import Quantity, RatioPanel, at_ratios, draw_columns, shown_groups
from report.accuracy.findings import Study

_LOSS = Quantity("training loss", lambda event: event.train_loss, log=True)


def draw_progress(study: Study, path: Path) -> bool:
    """The baseline is in every panel; False where no run has an evaluation."""
    return draw_columns(_columns(study), (_score(study), _LOSS), path)


def _score(study: Study) -> Quantity:
    metric = study.records.metric

    def value(event: Event) -> float | None:
        score = score_in(event, metric)
        return None if score is None else 100 * score

    return Quantity(f"test {metric.score_label}, percent", value, log=False)


def _columns(study: Study) -> list[RatioPanel]:
    findings = [study.baseline] if study.baseline else []
    return [
        RatioPanel(group.ratio, tuple((f.method, f.records) for f in (*findings, *group.findings)))
        for group in shown_groups(study)
    ]


def found_progress(study: Study) -> str:
    """Who ends with the best accuracy at each ratio, the baseline among them."""
    best = [
        (column.ratio, max(last, key=lambda pair: pair[0])[1])
        for column in _columns(study)
        if (last := column.last(_score(study)))
    ]
    return f"The best last accuracy: {at_ratios(best)}." if best else "No evaluation is recorded yet."
