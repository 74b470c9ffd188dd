"""QSR under a learning rate that rises and falls: when workers average, what they send, and that it is known before."""

from typing import Any

import numpy as np

from algorithms import Collectives
from algorithms.core.traffic import Entry
from tests.algorithms import transcription
from tests.algorithms.following import NUM_STEPS, NUM_WORKERS, SEED, make_problem
from tests.algorithms.problems import BIAS_LR, LR, NUM_PARAMETERS, make_model, make_optimizer, train, workers
from tests.algorithms.transcription import Array

OWN: dict[str, Any] = {"sync_interval": 2, "alpha": 0.15}
AVERAGED_AT = [2, 4, 6, 8, 10, 12, 14, 17, 20, 24, 29, 36, 48]
"""By hand: five rounds begin at rising rates; then (0.15 / rate)^2 is 2.5, 2.8, 3.04, 3.5, 4.1, 5.2, 7.2, 12.8."""


def rate(step: int) -> float:
    """Rises to 0.1 in 8 steps, then falls by a line that would reach 0 at step 50."""
    return LR * min(step / 8, (50 - step + 8) / 50)


def test_it_follows_its_definition_and_the_rates_that_it_is_given() -> None:
    def work(collectives: Collectives) -> list[Array]:
        model, seen = make_model(), []
        optimizer = make_optimizer("qsr", model, OWN, collectives, seed=SEED)
        for step in range(1, NUM_STEPS + 1):
            for group, peak in zip(optimizer.param_groups, (LR, BIAS_LR), strict=True):
                group["lr"] = peak * rate(step) / LR
            train(optimizer, model, collectives.rank, [step])
            seen.append(optimizer.flat.parameters[0].numpy().copy())
            num_averages = sum(each <= step for each in AVERAGED_AT)
            sent = Entry(64 * NUM_PARAMETERS * num_averages, num_averages)
            assert optimizer.traffic["model"] == sent == optimizer.expected_traffic(step)["model"]
            assert optimizer.agree_after(step) == (step in AVERAGED_AT)
        return seen

    expected = transcription.qsr(make_problem(), *OWN.values(), rate)
    for xs, (want, _) in zip(zip(*workers(work, NUM_WORKERS), strict=True), expected, strict=False):
        np.testing.assert_allclose(xs, want, rtol=1e-12, atol=1e-12)


def test_with_a_schedule_it_is_known_before() -> None:
    optimizer = make_optimizer("qsr", make_model(), OWN)
    assert optimizer.expected_traffic(50)["model"].collectives == 25, "with none, at the rate that is"
    optimizer.schedule = rate
    for step in range(51):
        assert optimizer.expected_traffic(step)["model"].collectives == sum(each <= step for each in AVERAGED_AT)
    assert [step for step in range(1, 51) if optimizer.agree_after(step)] == AVERAGED_AT
