"""The contract of a method as a kit: what every method promises, checked in half a minute.

`python -m cser_bench.algorithms.check my_method.py` prints a line for each promise. An author's own
tests have them as cases by two lines:

    from cser_bench.algorithms.check import cases
    test_promises = cases("my_method.py")
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from cser_bench.algorithms.check.findings import Finding as Finding
from cser_bench.algorithms.check.findings import finding_of as finding_of
from cser_bench.algorithms.check.findings import findings_of as findings_of
from cser_bench.algorithms.check.findings import keeps_promises as keeps_promises
from cser_bench.algorithms.check.promises import PROMISES as PROMISES
from cser_bench.algorithms.check.subject import Subject as Subject
from cser_bench.algorithms.check.subject import (
    lines_past_collectives as lines_past_collectives,
)
from cser_bench.algorithms.check.subject import subjects_in as subjects_in


def cases(file: str | Path) -> Callable[..., None]:
    """Return a test for pytest, with a case for each promise of each method in a file.

    Raises MethodFileError: there is none in it.
    """
    import pytest

    findings: list[Any] = []
    for subject in subjects_in(Path(file)):
        for promise in PROMISES:
            find = partial(finding_of, subject, promise)
            findings.append(pytest.param(find, id=f"{subject.name}: {promise}"))

    @pytest.mark.parametrize("find", findings)
    def test(find: Callable[[], Finding]) -> None:
        finding = find()
        if finding.verdict == "none":
            pytest.skip(finding.words)
        assert finding.verdict == "ok", finding.words

    return test
