"""Fitting: alpha and beta of a fabric from its sweep, and what they are at other rates."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import least_squares, nnls
from scipy.special import expit

from cser_bench.harness.measures.steps import ring_hops
from cser_bench.harness.records.timings import Collective, Fabric, Sweep
from cser_bench.report.speed.cost_model import Algorithm, Link, Links, Network

COLLECTIVES: tuple[Collective, ...] = (
    "all_reduce",
    "two_stages",
    "all_gather",
    "exchange",
)

POWERS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Powers that are tried for the norm which joins latency and sending."""

LEAST_ALPHA = 1e-10
"""Seconds a hop; of a latency that hides wholly behind sending the sweep says nothing, and the fit
would go to 0."""

_TOLERANCE = 1e-14


@dataclass(frozen=True)
class Fit:
    """Alpha and beta of a flat ring on one fabric, by the clock.

    `worst` is the largest relative error of a point.
    """

    fabric: Fabric
    collective: Collective
    link: Link
    worst: float

    @property
    def efficiency(self) -> float | None:
        """Fitted rate over the limit of the slowest link; None where nothing is limited."""
        limit = slowest_limit(self.fabric)
        if limit is None or self.link.beta == 0:
            return None
        return 8 / self.link.beta / limit


def slowest_limit(fabric: Fabric) -> float | None:
    """Return the rate of the slowest link that a flat ring uses, in bits per second.

    None where none is limited.
    """
    limits = []
    if fabric.num_machines > 1:
        limits.append(fabric.bits_per_second)
    if fabric.workers_per_machine > 1:
        limits.append(fabric.inside_bits_per_second)
    return min((limit for limit in limits if limit is not None), default=None)


def fit_line(
    xs: Sequence[float], ys: Sequence[float], times: Sequence[float]
) -> tuple[float, float]:
    """Return the a, b >= 0 that make a x + b y nearest to the times.

    By the sum of squared relative errors.
    """
    # (2, points): with times of one, absolute errors are relative ones.
    scaled = np.array([xs, ys]) / np.array(times)
    (a, b), _ = nnls(scaled.T, np.ones(len(times)))
    return float(a), float(b)


def fits_of(sweep: Sweep) -> list[Fit]:
    """Return one fit per collective of the sweep with at least two sizes.

    Each point counts by its median.
    """
    fits = []
    for collective in COLLECTIVES:
        points = [point for point in sweep.points if point.collective == collective]
        # Two unknowns, alpha and beta, need two sizes.
        sizes = {point.payload_bytes for point in points}
        if len(sizes) < 2:
            continue
        num_workers = sweep.fabric.num_workers
        hops = [
            ring_hops(collective, point.payload_bytes, num_workers) for point in points
        ]
        times = [median(point.seconds) for point in points]
        fitted = [_fitted(hops, times, power) for power in POWERS]
        link, errors = min(fitted, key=lambda pair: _squared_logs(pair[1]))
        worst = max(abs(error) for error in errors)
        fits.append(Fit(sweep.fabric, collective, link, worst))
    return fits


def _squared_logs(errors: Sequence[float]) -> float:
    """Return what `_fitted` makes least, of relative errors: ln(1 + error) is ln(time / measured)."""
    return sum(math.log1p(error) ** 2 for error in errors)


def _fitted(
    hops: Sequence[tuple[int, float]], times: Sequence[float], power: float
) -> tuple[Link, list[float]]:
    """Return the alpha and beta whose times are nearest, and relative errors.

    By the sum of squared logarithms of the ratios: a logarithm takes half for as bad as double, so
    noise of small messages does not bend what large ones say.
    """
    # (points,) each: hops, and the bytes that a worker sends in all of them.
    counts = np.array([count for count, _ in hops], dtype=np.float64)
    sent = np.array([count * size for count, size in hops], dtype=np.float64)
    wanted = np.log(np.array(times, dtype=np.float64))

    # The unknowns are the logarithms of alpha and beta, so that neither can be negative.
    def misses(logs: NDArray[np.float64]) -> NDArray[np.float64]:
        latency = logs[0] + np.log(counts)
        sending = logs[1] + np.log(sent)
        # ln of (latency^p + sending^p)^(1/p), which does not overflow for a large p.
        norms = np.logaddexp(power * latency, power * sending)
        return np.asarray(norms / power - wanted)

    def slopes(logs: NDArray[np.float64]) -> NDArray[np.float64]:
        # (points, 2): the derivative by each logarithm is its part's share of the sum of powers.
        shares = expit(power * (logs[0] + np.log(counts) - logs[1] - np.log(sent)))
        return np.stack([shares, 1 - shares], axis=1)

    # As if the point of the fewest hops were all latency, and that of the most bytes all sending.
    start = [
        wanted[counts.argmin()] - np.log(counts.min()),
        wanted[sent.argmax()] - np.log(sent.max()),
    ]
    solution = least_squares(
        misses, start, slopes, xtol=_TOLERANCE, ftol=_TOLERANCE, gtol=_TOLERANCE
    )
    alpha, beta = np.exp(solution.x)
    link = Link(max(float(alpha), LEAST_ALPHA), float(beta), power)
    errors = []
    for (count, size), time in zip(hops, times, strict=True):
        errors.append(count * link.hop(size) / time - 1)
    return link, errors


def fits_frame(fits: Sequence[Fit]) -> pd.DataFrame:
    """Return one line a fit.

    Which fabric and collective, alpha, beta, p, the share of the limit, and the largest error.
    """
    columns = [
        "machines",
        "workers_per_machine",
        "limit_bits_per_second",
        "collective",
        "alpha_seconds",
        "beta_seconds_per_byte",
        "power",
        "efficiency",
        "worst_relative_error",
    ]
    lines = []
    for fit in fits:
        lines.append(
            (
                *fit.fabric.layout,
                slowest_limit(fit.fabric),
                fit.collective,
                fit.link.alpha,
                fit.link.beta,
                fit.link.power,
                fit.efficiency,
                fit.worst,
            )
        )
    return pd.DataFrame(lines, columns=columns)


def network_on(
    fabric: Fabric, fits: Sequence[Fit], algorithm: Algorithm = "ring"
) -> Network | None:
    """Return the network of a fabric, its dilation undone.

    None where no fit is of its kind and backend. Fits of the same layout count, or all where there
    are none. Alpha, the share of the limit that is reached and p are the fitted ones; between two
    swept limits they are interpolated over the logarithm of the limit, alpha by its own, and beyond
    the last they stay; a sweep without a limit gives alpha and p alone to a fabric with one. A
    collective that was not swept takes the all-reduce's, or another's where that was not swept
    either.
    """
    alike = []
    for fit in fits:
        swept = fit.fabric
        if swept.kind == fabric.kind and swept.backend == fabric.backend:
            alike.append(fit)
    if not alike:
        return None
    same_layout = [fit for fit in alike if fit.fabric.layout == fabric.layout]
    usable = same_layout or alike
    all_reduces = [fit for fit in usable if fit.collective == "all_reduce"]
    links: dict[Collective, Links] = {}
    # What was swept of the collective itself, or else the next best.
    for collective in COLLECTIVES:
        of_kind = [fit for fit in usable if fit.collective == collective]
        links[collective] = _links(fabric, of_kind or all_reduces or usable)
    return Network(
        fabric.num_machines,
        fabric.workers_per_machine,
        links,
        algorithm,
        fabric.dilation,
    )


def _links(fabric: Fabric, fits: Sequence[Fit]) -> Links:
    """Return the links of a collective on a fabric, from fits at other limits; see `network_on`."""
    limit = slowest_limit(fabric)
    if limit is None:
        link = _unlimited_link(fits)
        return Links(link, link)
    # If two sweeps have one limit, the later counts; a sweep without one has the fabric's own.
    by_limit = {slowest_limit(fit.fabric) or limit: fit for fit in fits}
    limits = sorted(by_limit)
    swept = [by_limit[rate] for rate in limits]
    logs = [math.log(rate) for rate in limits]

    # Beyond the swept limits `interp` keeps the last value, as the docstring of `network_on` says.
    def at_limit(values: list[float]) -> float:
        return float(np.interp(math.log(limit), logs, values))

    alpha = math.exp(at_limit([math.log(fit.link.alpha) for fit in swept]))
    efficiency = at_limit([fit.efficiency or 1.0 for fit in swept])
    power = at_limit([fit.link.power for fit in swept])

    def link_of(rate: float | None) -> Link:
        if not rate:
            return Link(alpha, 0.0, power)
        # Seconds a byte, of a rate in bits of which a share is reached.
        return Link(alpha, 8 / (efficiency * rate), power)

    return Links(
        between=link_of(fabric.bits_per_second),
        inside=link_of(fabric.inside_bits_per_second),
    )


def _unlimited_link(fits: Sequence[Fit]) -> Link:
    """Return the fitted link of a sweep without a limit; where none is, that of the last sweep."""
    for fit in fits:
        if slowest_limit(fit.fabric) is None:
            return fit.link
    return fits[-1].link
