"""A task with a score of its own: its file, and a line in METRICS, are all that it takes."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cser_bench.algorithms import StackedCollectives
from cser_bench.harness import tasks
from cser_bench.harness.measures.metrics import METRICS, Metric
from cser_bench.harness.plan.checks import check_spec
from cser_bench.harness.spec.errors import SpecError
from cser_bench.harness.spec.spec import Spec
from cser_bench.harness.tasks.task import find_task
from cser_bench.harness.train.build import build_model, local_workers
from cser_bench.harness.train.evaluate import evaluate
from cser_bench.harness.train.passes import MixedPrecision
from tests.harness.support import changed, small_config, small_spec

TASK = '''
"""Blobs, scored by whether the label is among the two likeliest classes."""

from dataclasses import dataclass, replace

from cser_bench.harness.tasks.blobs import Blobs


class TopTwo:
    num_sums = 2

    def sums(self, answers, expected):
        likely = answers.topk(2, dim=1).indices
        return [float((likely == expected[:, None]).sum()), float(len(expected))]

    def metrics(self, sums):
        right, count = sums
        return {"top_2": right / count}



@dataclass(frozen=True)
class Ranked(Blobs):
    metrics: tuple = ("top_2",)

    def load(self, data, spec, device):
        return replace(super().load(data, spec, device), measure=TopTwo())


TASK = Ranked()
'''
CPU = torch.device("cpu")


@pytest.fixture
def ranked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A file more in the package of tasks."""
    (tmp_path / "ranked.py").write_text(TASK)
    folders = [*tasks.__path__, str(tmp_path)]
    monkeypatch.setattr(tasks, "__path__", folders)
    yield
    sys.modules.pop("cser_bench.harness.tasks.ranked", None)


def spec_of() -> Spec:
    table = changed(small_spec(), "task.name", "ranked")
    return Spec.model_validate(changed(table, "statistics.metric", "top_2"))


def test_a_spec_may_compare_by_it(
    ranked: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SpecError, match="METRICS"):
        check_spec(spec_of())
    metric = Metric("top_2", "top-2 accuracy", "percent", True)
    monkeypatch.setitem(METRICS, "top_2", metric)
    check_spec(spec_of())


def test_workers_score_shares_of_it(ranked: None) -> None:
    """Three workers' shares of the samples make the score of one who has all."""
    config = small_config(num_workers=3)
    task = find_task("ranked")
    samples = task.load(None, config.task, CPU)
    model = build_model(config.model, task, 1, CPU)
    collectives = StackedCollectives(3)
    models, optimizer = local_workers(config, model, collectives, 40)
    precision = MixedPrecision("fp32", CPU)
    score = evaluate(config, models, optimizer, precision, samples, 500, 1600)
    ((inputs, labels),) = [
        tuple(
            map(
                torch.cat,
                zip(*samples.evaluation_batches(torch.arange(500)), strict=True),
            )
        )
    ]
    # Untrained workers are alike.
    outputs = models[0].eval()(inputs)
    of_labels = outputs.gather(1, labels[:, None])
    ranks = (outputs > of_labels).sum(1)
    is_in_two = (ranks < 2).double()
    share = float(is_in_two.mean())
    assert score.metrics == {"top_2": pytest.approx(share)}
    num_first = int((ranks == 0).sum())
    assert score.correct == num_first
