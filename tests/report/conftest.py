"""Reports of made-up experiments, built once, that the tests of the report share."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.report.made_up import DESIGN, REGIME, Built, build


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A report with missing, failed and diverged runs in it."""
    return build(tmp_path_factory.mktemp("small"), DESIGN)


@pytest.fixture(scope="session")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The same runs, two of them interrupted and resumed."""
    design = replace(DESIGN, resumed=frozenset({("sgd", 1), ("cser_1024", 3)}))
    return build(tmp_path_factory.mktemp("resumed"), design)


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A report of an experiment of which no run was started."""
    return build(tmp_path_factory.mktemp("empty"), replace(DESIGN, none_run=True), tuning=False)


@pytest.fixture(scope="session")
def regime(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A report with floor, bounds, models sent, several lengths, candidate settings and both rules."""
    return build(tmp_path_factory.mktemp("regime"), REGIME)
