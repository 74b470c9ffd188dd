"""Scoring a model that translates: what it answers, sentence by sentence, and the loss of what it should have said."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from harness.records.store import Translation
from harness.tasks.pairs import PairSamples, plain
from harness.tasks.task import Samples
from harness.train.decoding import decode
from harness.train.precision import MixedPrecision

NUM_EXAMPLES = 3


def translation_sums(
    model: nn.Module, indices: Tensor, precision: MixedPrecision, samples: PairSamples, num_beams: int
) -> Tensor:
    """Sentences answered word for word, sentences, summed loss of tokens, tokens, and the sums of the measure.

    Returns:
        float64 of shape (4 + samples.measure.num_sums,), on the model's device.
    """
    was_training = model.training
    model.eval()
    totals = torch.zeros(4 + samples.measure.num_sums, dtype=torch.float64)
    for index in samples.parts(indices):
        inputs, labels = samples.evaluation.batch(index)
        outputs = precision.outputs(model, inputs)
        loss = nn.functional.cross_entropy(outputs, labels, reduction="sum").item()
        said = _answers(model, inputs[:, 0], precision, samples, num_beams)
        expected = samples.evaluation.target.sequences(index)
        correct = sum(map(list.__eq__, said, expected))
        tokens = int(samples.evaluation.num_tokens[index].sum())
        sums = [correct, len(said), loss, tokens, *samples.measure.sums(said, expected)]
        totals += torch.tensor(sums, dtype=torch.float64)
    model.train(was_training)
    return totals.to(next(model.parameters()).device)


def _answers(
    model: nn.Module, source: Tensor, precision: MixedPrecision, samples: PairSamples, num_beams: int
) -> list[list[int]]:
    with precision.autocast():
        return [plain(row) for row in decode(model, source, samples.max_length, num_beams)]  # type: ignore[arg-type]


@torch.no_grad()
def example_translations(
    model: nn.Module, precision: MixedPrecision, samples: Samples, num_beams: int
) -> list[Translation] | None:
    """Some sentences spread evenly over the evaluated split, which is in the order of their length; None of images."""
    if not isinstance(samples, PairSamples):
        return None
    count = len(samples.evaluation.groups)
    index = torch.arange(1, NUM_EXAMPLES + 1) * count // (NUM_EXAMPLES + 1)
    was_training = model.training
    model.eval()
    said = _answers(model, samples.evaluation.batch(index)[0][:, 0], precision, samples, num_beams)
    model.train(was_training)
    pairs = samples.evaluation
    texts = zip(pairs.source.sequences(index), pairs.target.sequences(index), said, strict=True)
    source_text, target_text = samples.text
    return [
        Translation(source=source_text(source), expected=target_text(expected), said=target_text(own))
        for source, expected, own in texts
    ]
