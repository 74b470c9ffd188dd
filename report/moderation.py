"""Variances moderated between rows: each is drawn to a common one, as in the R package limma.

The common variance and the degrees of freedom that it counts for are estimated from the rows (Smyth,
Stat. Appl. Genet. Mol. Biol. 3, 2004), also with robust hyperparameters (Phipson et al., Ann. Appl.
Stat. 10, 2016). Functions are named after limma's in their docstrings. All arrays are of many
experiments at once, (draws, rows).
"""

from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import special

Array = NDArray[np.float64]

Prior = Callable[[Array, int], tuple[Array, Array]]
"""From variances, (draws, rows), of so many degrees of freedom: the common variance, (draws, 1),
and the degrees of freedom that it counts for in each row, (draws, rows)."""

PRIORS = np.geomspace(0.1, 1e4, 120)
"""Degrees of freedom that a common variance may count for."""

TAILS = (0.05, 0.1)
"""Shares of the lowest and highest variances that are set to the next ones, as in limma."""

# What keeps logarithms finite: the least chance of a ratio, the least excess of a spread, the least
# degrees of freedom of an outlier, and the distance of a chance from 1.
_LEAST_CHANCE = 1e-300
_LEAST_EXCESS = 1e-9
_LEAST_DEGREES = 1e-6
_MOST_CHANCE = 1 - 1e-12


def moderated(variances: Array, degrees: int, prior: Prior) -> tuple[Array, Array]:
    """Return variances drawn to the common one, and their degrees of freedom: limma's squeezeVar.

    A row has at most the degrees of freedom of all rows together.
    """
    common, added = prior(variances, degrees)
    total = added + degrees
    own_share = degrees / total
    most = degrees * variances.shape[1]
    drawn = (1 - own_share) * common + own_share * variances
    return drawn, np.minimum(total, most)


def plain_prior(variances: Array, degrees: int) -> tuple[Array, Array]:
    """Return the common variance and the degrees of freedom that it counts for: limma's fitFDist."""
    # Of a chi-squared variable the logarithm has this mean and variance, which leaves the spread of
    # the true variances.
    logs = np.log(variances) - special.digamma(degrees / 2) + np.log(degrees / 2)
    excess = logs.var(axis=1, ddof=1) - special.polygamma(1, degrees / 2)
    # The trigamma function falls, so a table of it is inverted from its end.
    halves = np.geomspace(1e-2, 1e5, 4000)
    trigammas = special.polygamma(1, halves)
    half = np.interp(np.maximum(excess, _LEAST_EXCESS), trigammas[::-1], halves[::-1])
    # Rows that spread no more than by chance have one variance, which is then known.
    is_spread = excess > 0
    added = np.where(is_spread, 2 * half, np.inf)
    shift = np.where(is_spread, special.digamma(half) - np.log(half), 0.0)
    common = np.where(is_spread, np.exp(logs.mean(axis=1) + shift), variances.mean(axis=1))
    num_rows = variances.shape[1]
    return common[:, None], np.repeat(added[:, None], num_rows, axis=1)


def robust_prior(variances: Array, degrees: int) -> tuple[Array, Array]:
    """Return the same of each row, with less weight of rows that stand out: limma's fitFDistRobustly.

    The common variance is that of variances of which the ends are set to the next ones.
    """
    logs = np.log(variances)
    num_rows = logs.shape[1]
    low_share, high_share = TAILS
    lowest, highest = np.quantile(logs, [low_share, 1 - high_share], axis=1, keepdims=True)
    kept = np.clip(logs, lowest, highest)
    spread = kept.var(axis=1, ddof=1)
    means, spreads = _kept_moments(degrees)
    log_priors = np.log(PRIORS)
    # The spread falls as the degrees of freedom grow; the last of the moments is that of infinity.
    finite_spreads = spreads[:-1]
    finite_means = means[:-1]
    prior = np.exp(np.interp(spread, finite_spreads[::-1], log_priors[::-1]))
    is_finite = spread > spreads[-1]
    mean = np.where(is_finite, np.interp(np.log(prior), log_priors, finite_means), means[-1])
    common = np.exp(kept.mean(axis=1) - mean)[:, None]
    added = np.where(is_finite, prior, np.inf)[:, None]
    ratios = variances / common
    # An F distribution with infinite degrees of freedom below is a chi-squared one.
    is_infinite = np.isinf(added)
    chances = np.where(
        is_infinite,
        special.chdtrc(degrees, degrees * ratios),
        special.fdtrc(degrees, np.where(is_infinite, 1.0, added), ratios),
    )
    chances = np.maximum(chances, _LEAST_CHANCE)
    return common, _for_outliers(added, ratios, chances, degrees * num_rows, degrees)


@cache
def _kept_moments(degrees: int) -> tuple[Array, Array]:
    """Return mean and variance of log F of `degrees` and each of `PRIORS`, then infinity.

    Its ends are set to the next values, as those of the variances are.
    """
    shares = (np.arange(1000) + 0.5) / 1000
    low_share, high_share = TAILS
    shares = np.clip(shares, low_share, 1 - high_share)
    logs = [np.log(special.fdtri(degrees, prior, shares)) for prior in PRIORS]
    logs.append(np.log(special.chdtri(degrees, 1 - shares) / degrees))
    return np.mean(logs, axis=1), np.var(logs, axis=1)


def _for_outliers(added: Array, ratios: Array, chances: Array, pooled: int, degrees: int) -> Array:
    """Return the degrees of freedom that the common variance counts for in each row.

    Fewer where a row's own variance is too large.

    Args:
        added: of all rows, (draws, 1).
        ratios: of variances to the common one.
        chances: of ratios at least so large.
        pooled: degrees of freedom of all rows together.
        degrees: of one row.
    """
    num_rows = ratios.shape[1]
    order = np.argsort(-ratios, axis=1)
    chances = np.take_along_axis(chances, order, axis=1)
    ratios = np.take_along_axis(ratios, order, axis=1)
    # The largest of so many variances is expected to have this chance, the next that, and so on.
    expected = (np.arange(num_rows) + 0.5) / num_rows
    usual = np.minimum(chances / expected, 1.0)
    limit = np.minimum(added, pooled)
    # With so many degrees of freedom the largest ratio would be at its median; two steps to it.
    outlying = np.log(0.5) / np.log(chances[:, :1]) * limit
    again = special.fdtrc(degrees, np.maximum(outlying, _LEAST_DEGREES), ratios[:, :1])
    again = np.clip(again, _LEAST_CHANCE, _MOST_CHANCE)
    outlying = np.log(0.5) / np.log(again) * outlying
    shrunk = usual * limit + (1 - usual) * np.minimum(outlying, limit)
    # A larger variance never has more degrees of freedom than a smaller one: up to the least of the
    # running means all have that mean, and from there on none has fewer than those before.
    ranks = np.arange(num_rows)
    running = np.cumsum(shrunk, axis=1) / (ranks + 1)
    least = running.argmin(axis=1)[:, None]
    least_mean = np.take_along_axis(running, least, axis=1)
    shrunk = np.where(ranks <= least, least_mean, shrunk)
    without_limit = np.where(usual < 1, usual * pooled, np.inf)
    shrunk = np.where(np.isinf(added), without_limit, shrunk)
    shrunk = np.maximum.accumulate(shrunk, axis=1)
    in_place = np.empty_like(shrunk)
    np.put_along_axis(in_place, order, shrunk, axis=1)
    return in_place
