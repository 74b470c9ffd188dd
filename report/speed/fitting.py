"""Fitting: alpha and beta of a fabric from its sweep, and what they are at rates between and beyond
the swept ones."""

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from statistics import median

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import least_squares, nnls
from scipy.special import expit

from cser_bench.harness.measures.steps import ring_hops
from cser_bench.harness.records.timings import Collective, Fabric, Sweep
from cser_bench.report.speed.cost_model import Algorithm, Link, Links, Network

COLLECTIVES: tuple[Collective, ...] = ("all_reduce", "two_stages", "all_gather", "exchange")
POWERS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Of the norm that joins latency and sending: those that are tried."""
LEAST_ALPHA = 1e-10
"""Seconds a hop; of a latency that hides wholly behind sending the sweep says nothing, and the fit
would go to 0."""


@dataclass(frozen=True)
class Fit:
    """Alpha and beta of a flat ring on one fabric, by the clock. `worst` is the largest relative
    error of a point."""

    fabric: Fabric
    collective: Collective
    link: Link
    worst: float

    @property
    def efficiency(self) -> float | None:
        """Fitted rate over the limit of the slowest link; None where nothing is limited."""
        limit = slowest_limit(self.fabric)
        return 8 / self.link.beta / limit if limit and self.link.beta > 0 else None


def slowest_limit(fabric: Fabric) -> float | None:
    """Bits per second of the slowest link that a flat ring uses; None where none is limited."""
    between = fabric.bits_per_second if fabric.num_machines > 1 else None
    inside = fabric.inside_bits_per_second if fabric.workers_per_machine > 1 else None
    return min((rate for rate in (between, inside) if rate is not None), default=None)


def fit_line(
    xs: Sequence[float], ys: Sequence[float], times: Sequence[float]
) -> tuple[float, float]:
    """The a, b >= 0 that make a x + b y nearest to the times, by the sum of squared relative
    errors."""
    (a, b), _ = nnls((np.array([xs, ys]) / np.array(times)).T, np.ones(len(times)))
    return float(a), float(b)


def fits_of(sweep: Sweep) -> list[Fit]:
    """One fit per collective of the sweep with at least two sizes, each point by its median."""
    fits = []
    for collective in COLLECTIVES:
        points = [point for point in sweep.points if point.collective == collective]
        if len({point.payload_bytes for point in points}) < 2:
            continue
        hops = [
            ring_hops(collective, point.payload_bytes, sweep.fabric.num_workers) for point in points
        ]
        tried = [
            _fitted(hops, [median(point.seconds) for point in points], power) for power in POWERS
        ]
        link, errors = min(tried, key=lambda pair: sum(math.log1p(error) ** 2 for error in pair[1]))
        fits.append(Fit(sweep.fabric, collective, link, max(map(abs, errors))))
    return fits


def _fitted(
    hops: Sequence[tuple[int, float]], times: Sequence[float], power: float
) -> tuple[Link, list[float]]:
    """The alpha and beta whose times are nearest, by the sum of squared logarithms of the ratios;
    and relative errors.

    A logarithm takes half for as bad as double, so noise of small messages does not bend what large
    ones say.
    """
    counts, sent = np.array([(count, count * size) for count, size in hops], dtype=np.float64).T
    wanted = np.log(np.array(times, dtype=np.float64))

    def misses(logs: NDArray[np.float64]) -> NDArray[np.float64]:
        both = np.logaddexp(power * (logs[0] + np.log(counts)), power * (logs[1] + np.log(sent)))
        return np.asarray(both / power - wanted)

    def slopes(logs: NDArray[np.float64]) -> NDArray[np.float64]:
        shares = expit(power * (logs[0] + np.log(counts) - logs[1] - np.log(sent)))
        return np.stack([shares, 1 - shares], axis=1)

    start = [
        wanted[counts.argmin()] - np.log(counts.min()),
        wanted[sent.argmax()] - np.log(sent.max()),
    ]
    found = least_squares(misses, start, slopes, xtol=1e-14, ftol=1e-14, gtol=1e-14)
    alpha, beta = np.exp(found.x)
    link = Link(max(float(alpha), LEAST_ALPHA), float(beta), power)
    return link, [
        count * link.hop(size) / time - 1 for (count, size), time in zip(hops, times, strict=True)
    ]


def fits_frame(fits: Sequence[Fit]) -> pd.DataFrame:
    """One line a fit: which fabric and collective, alpha, beta, p, the share of the limit, and the
    largest error."""
    columns = [
        "machines",
        "workers_per_machine",
        "limit_bits_per_second",
        "collective",
        "alpha_seconds",
    ]
    columns += ["beta_seconds_per_byte", "power", "efficiency", "worst_relative_error"]
    lines = [
        (
            *f.fabric.layout,
            slowest_limit(f.fabric),
            f.collective,
            *astuple(f.link),
            f.efficiency,
            f.worst,
        )
        for f in fits
    ]
    return pd.DataFrame(lines, columns=columns)


def network_on(
    fabric: Fabric, fits: Sequence[Fit], algorithm: Algorithm = "ring"
) -> Network | None:
    """The network of a fabric, its dilation undone; None where no fit is of its kind and backend.

    Fits of the same layout count, or all where there are none. Alpha, the share of the limit that
    is reached and p are the fitted ones; between two swept limits they are interpolated over the
    logarithm of the limit, alpha by its own, and beyond the last they stay; a sweep without a limit
    gives alpha and p alone to a fabric with one. A collective that was not swept takes the
    all-reduce's, or another's where that was not swept either.
    """
    alike = [f for f in fits if (f.fabric.kind, f.fabric.backend) == (fabric.kind, fabric.backend)]
    alike = [f for f in alike if f.fabric.layout == fabric.layout] or alike
    if not alike:
        return None
    links: dict[Collective, Links] = {}
    for collective in COLLECTIVES:
        own, summed = (
            [fit for fit in alike if fit.collective == name] for name in (collective, "all_reduce")
        )
        links[collective] = _links(fabric, own or summed or alike)
    return Network(
        fabric.num_machines, fabric.workers_per_machine, links, algorithm, fabric.dilation
    )


def _links(fabric: Fabric, fits: Sequence[Fit]) -> Links:
    limit = slowest_limit(fabric)
    if limit is None:
        link = next((fit.link for fit in fits if slowest_limit(fit.fabric) is None), fits[-1].link)
        return Links(link, link)
    swept = {
        slowest_limit(f.fabric) or limit: (
            math.log(f.link.alpha),
            f.efficiency or 1.0,
            f.link.power,
        )
        for f in fits
    }
    logs = [math.log(rate) for rate in sorted(swept)]
    columns = zip(*(swept[rate] for rate in sorted(swept)), strict=True)
    log_alpha, efficiency, power = (
        float(np.interp(math.log(limit), logs, column)) for column in columns
    )
    rates = (fabric.bits_per_second, fabric.inside_bits_per_second)
    return Links(
        *(
            Link(math.exp(log_alpha), 8 / (efficiency * rate) if rate else 0.0, power)
            for rate in rates
        )
    )
