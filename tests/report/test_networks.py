"""What carries over between kinds of network: shares of what can be lost, and the order of
methods."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cser_bench.report.questions.agreement import agreement
from cser_bench.report.questions.evidence import Evidence, evidence_of
from cser_bench.report.questions.network_page import sends_four_bits
from cser_bench.report.questions.networks import SPEAKING, kinds_of, shares_lost
from cser_bench.report.questions.one_load import (
    ORDERED,
    losses_at_one_load,
    resets_against_local,
    with_all_methods,
)

FEEDBACK, LOCAL, BLOCKS = ORDERED.values()


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    return evidence_of(None)


def test_a_share_is_the_loss_over_what_a_worker_alone_loses(evidence: Evidence) -> None:
    """By the scores of the shipped runs alone."""
    shares = shares_lost(evidence).set_index(["network", "method"])
    for known in kinds_of(evidence):
        scores = known.frames.runs.groupby("row")["score"].mean()
        best, floor = scores[known.baseline], scores[known.frames.experiment.floor]
        for speaker, (method, _) in SPEAKING.items():
            row = known.row(speaker)
            if row is not None:
                line = shares.loc[(known.kind, method)]
                assert line["share"] == pytest.approx(
                    (best - scores[row]) / (best - floor), abs=1e-9
                )
                assert line["low"] < line["share"] < line["high"]
    assert {"Perceptron", "Convolutions"} <= set(shares.index.get_level_values("network"))


def test_what_sends_4_bits_sends_nothing_else(evidence: Evidence) -> None:
    known = evidence.experiment("resnet_methods")
    assert known is not None
    own = [row.row for row in known.frames.experiment.rows if row.base is None]
    assert {row for row in own if sends_four_bits(known, row)} == {"qsparse_4-3", "cser_pl_4-3"}
    for row, column, value in (
        ("qsparse_4-3", "compressor.bits", 8),
        ("cser_pl_4-3", "gradient_compressor.kind", "block"),
    ):
        rows = known.frames.rows.copy()
        rows.loc[rows["row"] == row, column] = value
        other = replace(known, frames=replace(known.frames, rows=rows))
        assert not sends_four_bits(other, row)


IN_ORDER = {
    "reference/fashion_mnist_long": ("sgd", "ef_topk-384", "local_sgd-96", "mcser_block-96"),
    "study_network_cnn": ("sgd", "ef_topk-96", "local_sgd-24", "mcser-h16-r1_3-r2_48"),
    "study_network_densenet": ("sgd", "ef_topk-96", "local_sgd-24", "mcser-h16-r1_3-r2_48"),
    "study_network_shufflenet": ("sgd", "ef_topk-96", "local_sgd-24", "mcser-h16-r1_3-r2_48"),
    "reference/resnet_regime": ("sgd", "ef_topk-96", "local_sgd-24", "mcser_block-24"),
    "reference/gpt_text": ("adamw", "ef_topk_updates-32", "local-8", "cser-8"),
}
"""By folder: everything sent, error feedback with top-k, local steps, error reset by blocks, at one
load of a link."""


def test_rows_at_one_load_are_found_by_their_methods_and_losses_are_those_of_their_scores(
    evidence: Evidence,
) -> None:
    experiments = [evidence.experiment(name.rpartition("/")[2]) for name in IN_ORDER]
    found = losses_at_one_load([known for known in experiments if known])
    assert found["experiment"].tolist() == [name.rpartition("/")[2] for name in IN_ORDER]
    for line, rows, known in zip(
        found.to_dict("records"), IN_ORDER.values(), experiments, strict=True
    ):
        assert known
        loads = known.frames.by_row.loc[list(rows[1:]), "link_models"]
        assert loads.max() / loads.min() < 1.02, f"{known.name}: one load of a link"
        best, *means = (known.frames.done(row).mean() for row in rows)
        losses = [line[method] for method in (FEEDBACK, LOCAL, BLOCKS)]
        assert losses == pytest.approx([best - mean for mean in means], abs=1e-12)


def test_the_order_of_networks_on_images_is_counted_from_their_losses(evidence: Evidence) -> None:
    images = with_all_methods(evidence, "images")
    losses = losses_at_one_load(images)
    order = agreement(losses[list(ORDERED.values())])
    assert order is not None and order.num_kinds == len(images) >= 5
    assert order.num_alike == sum(
        line[FEEDBACK] < line[LOCAL] < line[BLOCKS] for line in losses.to_dict("records")
    )
    apart = resets_against_local(images + with_all_methods(evidence, "text"))
    by_hand = [line[BLOCKS] - line[LOCAL] for line in losses.to_dict("records")]
    assert apart["estimate"].tolist()[: len(images)] == pytest.approx(by_hand)
    assert (apart["low"] < apart["estimate"]).all() and (apart["estimate"] < apart["high"]).all()
