"""How rates, times and factors are written."""

from __future__ import annotations

import math

from report.kit.wording import NONE


def rate(bits_per_second: float | None) -> str:
    """A rate in three digits: "1 Mb/s", "2.5 Gb/s"."""
    if bits_per_second is None:
        return "no limit"
    power, name = (
        (9, "Gb/s") if bits_per_second >= 0.9995e9 else (6, "Mb/s") if bits_per_second >= 0.9995e6 else (3, "kb/s")
    )
    return f"{_digits(bits_per_second / 10**power)} {name}"


def milliseconds(seconds: float | None) -> str:
    """Seconds as milliseconds in three digits, without the unit."""
    return NONE if seconds is None else _digits(1e3 * seconds)


def factor(value: float | None) -> str:
    """A speed-up: "1.25x", "12.3x", "123x"."""
    return (
        NONE
        if value is None
        else f"{value:.2f}x"
        if value < 9.95
        else f"{value:,.0f}x"
        if value > 99.5
        else f"{value:.1f}x"
    )


def signed_percent(value: float | None) -> str:
    """A share with its sign in percent: "+3.1 %"."""
    if value is None:
        return NONE
    return "0.0 %" if abs(value) < 0.0005 else f"{100 * value:+.1f} %".replace("-", "−")


def _digits(value: float) -> str:
    if abs(value) < 1e-9 or not math.isfinite(value):
        return "infinite" if math.isinf(value) else "0"
    decimals = max(2 - math.floor(math.log10(abs(value))), 0)
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
