"""The exhibit that docs/adding-an-exhibit.md shows is found, numbered and right, or left out where there is nothing."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from harness.records.packs import open_runs
from report.accuracy import sections
from report.accuracy.build import build_report
from report.synthetic import METHODS, Design, make_experiment

PAGE = Path(__file__).parents[2] / "docs" / "adding-an-exhibit.md"
DESIGN = Design(name="once", methods=METHODS[:2], ratios=(64,), evaluations=3, grid=(0.1,))


@pytest.fixture
def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's module, as one more file of the folder of sections."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "worst_seed.py").write_text(code)
    monkeypatch.setattr(sections, "__path__", [*sections.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "report.accuracy.sections.worst_seed", raising=False)


@pytest.mark.usefixtures("shown")
def test_it_comes_after_what_was_published_with_the_next_number(tmp_path: Path) -> None:
    folder = tmp_path / DESIGN.name
    make_experiment(folder, DESIGN)
    text = build_report(folder).read_text()
    titles = re.findall(r"^## (.*)$", text, re.MULTILINE)
    at = titles.index("Trained once")
    assert (titles[at - 1], titles[at + 1]) == ("What was published", "Questions")
    numbers = [int(number) for number in re.findall(r"\*\*Table (\d+): ", text)]
    assert numbers == sorted(numbers) and len(set(numbers)) == len(numbers)
    scores = [run.result.test_accuracy for run in open_runs(folder).values() if run.result]
    lowest = min(score for score in scores if score is not None)
    assert f"the lowest seed is {100 * lowest:.2f} %." in text


@pytest.mark.usefixtures("shown")
def test_without_a_score_there_is_no_such_section(tmp_path: Path) -> None:
    folder = tmp_path / DESIGN.name
    make_experiment(folder, replace(DESIGN, none_run=True))
    assert "Trained once" not in build_report(folder).read_text()
