"""Training on pairs of sequences: batches by length, a loss over all tokens, and runs that are one
to the bit."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from cser_bench.harness.seeds import generator
from cser_bench.harness.spec.run import RunConfig, TaskSpec
from cser_bench.harness.tasks.cmudict import TASK
from cser_bench.harness.tasks.pairs import PairSamples
from cser_bench.harness.train.build import build_model
from cser_bench.harness.train.evaluate import Answers
from cser_bench.harness.train.order import worker_batches
from cser_bench.harness.train.passes import MixedPrecision
from tests.harness.support import CSER, comparable, done, small_config

CPU = torch.device("cpu")
PLAIN = MixedPrecision("fp32", CPU)
MODEL = {
    "name": "transformer",
    "options": {"width": 16, "num_heads": 2, "num_layers": 1, "feedforward": 16},
}
WORDS = {"name": "cmudict", "num_train": 1_600, "held_out": 100}
"""A hundred words are scored, as the test set's 4,000 take longer than training."""
FILE = Path(__file__).with_name("golden_pairs.json")


def samples(**spec: Any) -> PairSamples:
    task_spec = TaskSpec(**(WORDS | spec))
    return TASK.load(None, task_spec, CPU)


def config(
    algorithm: str = "sgd", table: dict[str, Any] | None = None, **changes: Any
) -> RunConfig:
    """A run of 40 steps on words of a fixed shard each."""
    own = {"task": WORDS, "model": MODEL, "partition": {"kind": "contiguous"}}
    return small_config(algorithm, table, **(own | changes))


@pytest.mark.parametrize("shard", [None, torch.arange(100, 225)])
@pytest.mark.parametrize("rank", [0, 2])
def test_batches_of_like_length_hold_what_the_epoch_holds_and_go_on_from_any_step(
    shard: torch.Tensor | None, rank: int
) -> None:
    draws = generator("lengths")
    lengths = torch.randint(1, 30, (500,), generator=draws)
    own = {"rank": rank, "num_workers": 4, "batch_size": 5, "shard": shard}
    batches = torch.stack(
        list(worker_batches(1, 500, steps=range(50), lengths=lengths, **own))
    )
    assert torch.equal(
        torch.stack(
            list(worker_batches(1, 500, steps=range(31, 50), lengths=lengths, **own))
        ),
        batches[31:],
    )
    every = worker_batches(1, 500, steps=range(50), **own)
    unsorted = torch.stack(list(every))
    first_epoch = batches[:25]
    if shard is None:
        seen: list[int] = []
        for peer in range(4):
            batches_of_peer = worker_batches(
                1, 500, peer, 4, 5, range(25), None, lengths
            )
            for each in batches_of_peer:
                seen += each.tolist()
        assert sorted(seen) == list(range(500))
    else:
        seen_here = first_epoch.flatten().tolist()
        assert sorted(seen_here) == shard.tolist()

    def total_spread(indices: torch.Tensor) -> torch.Tensor:
        """Sum over batches of the longest sentence less the shortest."""
        own_lengths = lengths[indices]
        spread = own_lengths.amax(1) - own_lengths.amin(1)
        return spread.sum()

    assert total_spread(batches) < total_spread(unsorted) / 5
    means = lengths[first_epoch].double().mean(1)
    changes = means.diff()
    assert (changes < 0).any(), "steps go from short to long"
    assert (changes > 0).any(), "steps go from short to long"


def test_a_step_of_two_workers_is_the_step_of_one_with_all_their_tokens(
    tmp_path: Path,
) -> None:
    """Their batches have other numbers of tokens; a mean of means would not do."""
    ends = []
    for num_workers in (1, 2):
        own = config(
            num_workers=num_workers,
            batch_size=40 // num_workers,
            partition={"kind": "reshuffled"},
        )
        ends.append(done(own, tmp_path).result)
    one, two = ends
    assert one.num_steps == 40
    assert two.num_steps == 40
    assert two.test_loss == pytest.approx(one.test_loss, rel=1e-4)
    assert two.train_loss == pytest.approx(one.train_loss, rel=1e-4)


def test_label_smoothing_is_in_the_training_loss_alone() -> None:
    own = samples()
    model = build_model(config().model, TASK, 0, CPU)
    ten = torch.arange(10)
    inputs, labels = own.train.batch(ten)
    smoothed = MixedPrecision("fp32", CPU, label_smoothing=0.1)
    found = smoothed.loss(model, inputs, labels)
    scores = torch.log_softmax(model(inputs), 1)  # (batch, tokens, places)
    counts = labels >= 0
    known = labels.clamp(min=0).unsqueeze(1)
    of_labels = scores.gather(1, known).squeeze(1)
    plain = -of_labels[counts].mean()
    mean_of_all = scores.mean(1)[counts].mean()
    expected = 0.9 * plain - 0.1 * mean_of_all
    torch.testing.assert_close(found, expected)
    every = torch.arange(50)
    answers = Answers(model, PLAIN)
    smoothed_answers = Answers(model, smoothed)
    sums = own.modality.sums(answers, own, every)
    smoothed_sums = own.modality.sums(smoothed_answers, own, every)
    torch.testing.assert_close(smoothed_sums, sums, rtol=0, atol=0)


METHODS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "cser": CSER,
    "local_sgd": {"sync_interval": 3},
    "ef_sgd": {"compressor": {"kind": "top_k", "ratio": 8}},
}


@pytest.mark.parametrize("name", METHODS)
def test_a_run_has_the_losses_that_were_last_looked_at(
    name: str, tmp_path: Path
) -> None:
    """After a change of losses that is meant, run with UPDATE_GOLDEN=NAME and read the diff."""
    run = done(config(name, METHODS[name]), tmp_path)
    events, result = comparable(run.folder)
    assert result["class_counts"]
    for each in result["class_counts"]:
        assert sum(each) == 800
    assert set(result["metrics"]) == {"phone_error_rate"}
    assert result["data_sha256"] == samples().sha256
    golden = json.loads(FILE.read_text())
    losses = [event["test_loss"] for event in events]
    if os.environ.get("UPDATE_GOLDEN") == name:
        golden[name] = losses
        lines = [f" {json.dumps(key)}: {json.dumps(golden[key])}" for key in golden]
        FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    assert losses == pytest.approx(golden[name], rel=1e-3)
