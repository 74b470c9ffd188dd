"""The family's relatives: what each sends in a step, in closed form, for studies whose records have none of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from harness.records.timings import Collective, Message, Method, Rounds
from report.speed.study import Bench

RATIO = 256
"""Overall, of those that compress: that of the family's methods without a ratio in their label."""

HOOK = "powersgd_2"
"""The timed method, by name, whose bytes PowerSGD of the same rank sends in two messages."""


def relatives_of(bench: Bench) -> tuple[Method, ...]:
    """Each as it was timed, else by its closed form; PowerSGD's bytes depend on the shapes, and are its hook's."""
    own = {method.name: method for method in closed_forms(bench.workload.num_parameters, bench.main.fabric.num_workers)}
    hook = bench.method(HOOK)
    if hook is not None:
        half = sum(message.payload_bytes for message in hook.messages) // 2
        own["powersgd"] = _method("powersgd", "PowerSGD rank 2, two messages", hook.ratio, [_sum(half), _sum(half)])
    return tuple(bench.method(name) or method for name, method in own.items())


def closed_forms(num_parameters: int, num_workers: int) -> list[Method]:
    """Those whose bytes depend on the number of parameters alone, in the order of `harness.timing.methods.METHODS`."""
    whole, part = 4 * num_parameters, 4 * math.ceil(num_parameters / RATIO)
    half = 4 * math.ceil(num_parameters / (2 * RATIO))
    ring: Rounds = (tuple(dict.fromkeys((1, num_workers - 1))),)
    peers: Rounds = tuple((2**power,) for power in range((num_workers - 1).bit_length()))
    neighbours = len(ring[0])
    found = [_method("dpsgd", "D-PSGD, one peer", 1.0, [_told(whole, peers)])] * (not num_workers & (num_workers - 1))
    return [
        *found,
        _method("dpsgd_ring", "D-PSGD, ring", 1 / neighbours, [_told(neighbours * whole, ring)], "dpsgd"),
        _method("choco_sgd", "CHOCO-SGD", RATIO, [_told(neighbours * half, ring)]),
        _method("deep_squeeze", "DeepSqueeze", RATIO, [_told(neighbours * half, ring)]),
        _method("diloco", "DiLoCo", RATIO, [_sum(whole, every=RATIO)]),
        _method("ef21_sgdm", "EF21-SGDM", RATIO, [_sum(part)]),
        _method("sparta", "SPARTA", RATIO, [_sum(part)], "cser_pl"),
    ]


def _sum(payload_bytes: int, every: int = 1) -> Message:
    return _message("all_reduce", payload_bytes, every, ())


def _told(payload_bytes: int, rounds: Rounds) -> Message:
    return _message("exchange", payload_bytes, 1, rounds)


def _message(collective: Collective, payload_bytes: int, every: int, rounds: Rounds) -> Message:
    return Message(collective=collective, payload_bytes=payload_bytes, every=every, ready=1.0, rounds=rounds)


def _method(name: str, label: str, ratio: float, messages: Sequence[Message], algorithm: str | None = None) -> Method:
    return Method(
        name=name,
        label=label,
        baseline=False,
        ratio=ratio,
        settings="not timed: messages by their closed form",
        overlap=False,
        period=max(message.every for message in messages),
        messages=list(messages),
        algorithm=algorithm or name,
    )
