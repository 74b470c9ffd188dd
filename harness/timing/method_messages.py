"""What a method sends and computes, seen on one worker that trains alone: its messages, and its codec's time."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, median

import torch

from algorithms import DistributedOptimizer
from algorithms.core.stages import EarlyMessage
from harness.records.timings import Message, Method
from harness.timing.timed_step import Recorded, Setting, Turn
from harness.train.build import build_topology
from harness.train.clock import seconds_to_idle

NUM_DRAWS = 1000
"""Steps of an overlapped method over which it is averaged when its blocks' layers are done."""
NUM_KEPT_DRAWS = 50
"""How many of these a record holds."""
NUM_CODEC_STEPS = 3


def described(setting: Setting, methods: Sequence[Method], num_warmup_steps: int) -> list[Method]:
    """The methods with their messages and the time of their codecs; the group of `setting` must be of this worker
    alone, and its messages visible."""
    assert setting.visible, "messages that DDP sends in C++ are not seen"
    bare, found = _bare_seconds(setting), []
    for method in methods:
        turn = Turn(setting, method, num_warmup_steps)
        known = {"messages": messages_of(turn, method), "codec_alone_seconds": _codec_seconds(turn, method, bare)}
        found.append(method.model_copy(update=known))
    return found


def messages_of(turn: Turn, method: Method) -> list[Message]:
    """Say what a worker sends in a period: in every step, and what the synchronising step sends besides."""
    messages = _messages_once(turn, method.period)
    if "topology" in method.settings:
        # Those of worker 0; each other worker's neighbours are as many ranks further on.
        topology = build_topology(method.label, method.settings["topology"])
        rounds = tuple(mixing.receivers[0] for mixing in topology.rounds(turn.setting.num_workers))
        messages = [message.model_copy(update={"rounds": rounds}) for message in messages]
    optimizer = turn.method.optimizer
    if not method.overlap or not isinstance(optimizer, DistributedOptimizer):
        return messages
    steps, ready = range(method.period, (NUM_DRAWS + 1) * method.period, method.period), turn.setting.layers.ready()
    draws = [early_begins(optimizer.early_messages(step), ready) for step in steps]
    return [_drawn(message, [draw.get(8 * message.payload_bytes, 1.0) for draw in draws]) for message in messages]


def _drawn(message: Message, ready: Sequence[float]) -> Message:
    return message.model_copy(update={"ready": mean(ready), "ready_draws": tuple(ready[:NUM_KEPT_DRAWS])})


def early_begins(messages: Sequence[EarlyMessage], ready: Sequence[float]) -> dict[int, float]:
    """When a step's early messages may begin, one after the other, by payload in bits.

    Args:
        ready: by tensor, the share of the backward pass that is done when its gradient is there.
    """
    begun, reached = {}, 0.0
    for message in sorted(messages, key=lambda each: -each.tensors[0]):
        reached = max(reached, *(ready[number] for number in message.tensors))
        begun[message.payload_bits] = reached
    return begun


def _messages_once(turn: Turn, period: int) -> list[Message]:
    ordinary: list[Recorded] = []
    if period > 1:
        turn.method.go_to(0, False)
        ordinary = turn.timed_step()[1]
    turn.method.go_to(0, True)
    often = [each.payload_bytes for each in ordinary]
    messages = []
    for each in turn.timed_step()[1]:
        if not each.payload_bytes:  # PowerSGD reduces what is no matrix also where there is nothing.
            continue
        every = period
        if each.payload_bytes in often:
            often.remove(each.payload_bytes)
            every = 1
        sent = {"collective": each.collective, "payload_bytes": each.payload_bytes}
        messages.append(Message(**sent, every=every, ready=each.ready))
    return messages


def _codec_seconds(turn: Turn, method: Method, bare: float) -> float:
    """Seconds of a step that passes without a method do not take: the mean over the period of its kinds' medians."""

    def seconds(synchronises: bool) -> float:
        taken = []
        for _ in range(NUM_CODEC_STEPS):
            turn.method.go_to(0, synchronises)
            taken.append(seconds_to_idle(turn.method.step, turn.setting.device))
        return median(taken)

    over_period = seconds(True)
    if method.period > 1:
        over_period = (seconds(False) * (method.period - 1) + over_period) / method.period
    return max(0.0, over_period - bare)


def _bare_seconds(setting: Setting) -> float:
    """Seconds of the passes alone; gradients are added to what is there, as where a method has flat buffers."""
    trainee = setting.trainee()
    for parameter in trainee.module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return median([seconds_to_idle(trainee.passes, setting.device) for _ in range(1 + NUM_CODEC_STEPS)][1:])
