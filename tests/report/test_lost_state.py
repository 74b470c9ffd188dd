"""The page on lost state says what the shipped runs say: each restart against the same row without one, by seed."""

from __future__ import annotations

from pathlib import Path

from harness.records.experiment import Row, read_experiment
from harness.records.packs import open_runs
from report.kit.statistics import mean_of, pair

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "lost-state.md").read_text()
SHIPPED = ROOT / "results" / "reference" / "lost_state"
ROW = "| {label} | {whole:.2f} % | {lost:.2f} % | {difference:+.2f} ({low:+.2f} to {high:+.2f}) |"


def accuracies(row: Row) -> dict[int, float]:
    """In percent, by seed."""
    runs = open_runs(SHIPPED)
    found = {}
    for seed, run in row.runs.items():
        result = runs[run].result
        assert result is not None and result.test_accuracy is not None, f"{row.row} at seed {seed} diverged"
        found[int(seed)] = 100 * result.test_accuracy
    return found


def lines() -> list[str]:
    """The page's table, from the records."""
    rows = {row.row: row for row in read_experiment(SHIPPED).rows}
    found = []
    for name, row in rows.items():
        if "~" in name:
            lost, whole = accuracies(row), accuracies(rows[name.split("~")[0]])
            paired = pair(lost, whole)
            assert paired is not None and paired.low is not None and paired.high is not None
            means = {"whole": mean_of(list(whole.values())), "lost": mean_of(list(lost.values()))}
            bounds = {"difference": paired.difference, "low": paired.low, "high": paired.high}
            numbers = ROW.format(label="", **means, **bounds).replace("-", "−")
            found.append(f"| {row.label}{numbers.removeprefix('| ')}")
    return found


def test_the_page_says_what_the_runs_say() -> None:
    expected = lines()
    text = "\n".join(expected)
    assert text and text in PAGE, f"docs/lost-state.md should have these lines:\n{text}"
    (told_apart,) = (line for line in expected if (line.count("(−") and line.count("to −")) or line.count("(+"))
    assert told_apart.startswith("| CHOCO-SGD without estimate and mixed estimates of worker 7")
    assert "CHOCO-SGD ends 0.60\npoints lower" in PAGE and "| −0.60 (" in told_apart
