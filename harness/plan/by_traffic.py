"""Settings by traffic, as a spec has them."""

from __future__ import annotations

import inspect

from cser_bench.algorithms import Compressor, DistributedOptimizer
from cser_bench.harness.spec.errors import SpecError
from cser_bench.harness.spec.run import CompressorSettings, MethodSettings


def settings_at_traffic(
    method: type[DistributedOptimizer], share: float, world_size: int
) -> MethodSettings:
    """Return a method's settings at a share of DDP's traffic.

    See `DistributedOptimizer.at_traffic`.
    """
    values = dict(method.at_traffic(share, world_size=world_size))
    for key, value in values.items():
        if isinstance(value, Compressor):
            values[key] = _described(value)
    return MethodSettings(values)


def usual_settings(
    method: type[DistributedOptimizer], share: float, world_size: int
) -> MethodSettings:
    """Return settings of a method that nobody gave any: those by traffic, or else its defaults.

    Raises SpecError: it does not say how it reaches that traffic, and has settings without a default.
    """
    try:
        return settings_at_traffic(method, share, world_size)
    except ValueError:
        required = [
            key for key, setting in method.declared.items() if setting.is_required
        ]
    if required:
        raise SpecError(
            f"{method.name} does not say how it sends {share:.3g} of DDP's traffic between "
            f"{world_size} workers; give it _at_traffic, or its {', '.join(required)}, as `try` "
            "takes them by --settings 'sync_interval = 24' or 'compressor = { kind = \"top_k\", "
            "ratio = 192 }'"
        )
    return MethodSettings()


def _described(compressor: Compressor) -> CompressorSettings:
    """Return what `build_compressor` makes this compressor of, defaults left out."""
    options = {}
    for parameter in inspect.signature(type(compressor)).parameters.values():
        value = getattr(compressor, parameter.name)
        # A default that is written out would give the same compressor another run id.
        if value != parameter.default:
            options[parameter.name] = value
    return CompressorSettings(kind=compressor.kind, **options)
