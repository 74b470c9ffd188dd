"""What a method sends and computes, seen on one worker that trains alone: its messages, and its codec's time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median

import torch

from algorithms import DistributedOptimizer
from algorithms.core.stages import EarlyMessage
from harness.records.timings import Message, Rounds
from harness.timing.methods import TimedMethod
from harness.timing.steps import Recorded, Turn, TurnContext
from harness.train.build import build_topology
from harness.train.clock import seconds_to_idle

NUM_DRAWS = 1000
"""Steps of an overlapped method over which it is averaged when its blocks' layers are done."""
NUM_KEPT_DRAWS = 50
"""Of these: what a record holds of them."""
NUM_CODEC_STEPS = 3


@dataclass(frozen=True)
class Described:
    """What one worker alone shows of a method.

    Attributes:
        messages: of a period.
        codec_seconds: encoding, decoding and update of a step, mean over the period; None: not timed.
    """

    messages: list[Message]
    codec_seconds: float | None


def described(setting: TurnContext, timed: TimedMethod, num_warmup_steps: int, times_codec: bool) -> Described:
    """Look at the method; the group of `setting` must be of this worker alone, and its messages visible."""
    assert setting.visible, "messages that DDP sends in C++ are not seen"
    turn = setting.turn(timed)
    turn.warm_up(num_warmup_steps)
    turn.trainee.waits = False
    messages = messages_of(turn, timed, setting.num_workers)
    return Described(messages, _codec_seconds(turn, timed, _bare_seconds(setting)) if times_codec else None)


def messages_of(turn: Turn, timed: TimedMethod, num_workers: int) -> list[Message]:
    """What a worker sends in a period: in every step, and what the synchronising step sends besides."""
    messages = _messages_once(turn, timed.period)
    if timed.topology:
        rounds = _rounds(timed, num_workers)
        messages = [message.model_copy(update={"rounds": rounds}) for message in messages]
    optimizer = turn.method.optimizer
    if not timed.overlap or not isinstance(optimizer, DistributedOptimizer):
        return messages
    steps = range(timed.period, (NUM_DRAWS + 1) * timed.period, timed.period)
    draws = [_early_begins(optimizer.early_messages(step), turn.layers.ready()) for step in steps]
    return [_drawn(message, [draw.get(8 * message.payload_bytes, 1.0) for draw in draws]) for message in messages]


def _rounds(timed: TimedMethod, num_workers: int) -> Rounds:
    """Those of worker 0; each other worker's neighbours are as many ranks further on."""
    topology = build_topology(timed.label, timed.topology)
    return tuple(mixing.receivers[0] for mixing in topology.rounds(num_workers))


def _drawn(message: Message, ready: Sequence[float]) -> Message:
    return message.model_copy(update={"ready": mean(ready), "ready_draws": tuple(ready[:NUM_KEPT_DRAWS])})


def _early_begins(messages: Sequence[EarlyMessage], ready: Sequence[float]) -> dict[int, float]:
    """By payload in bits: when a step's early messages may begin, one after the other."""
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
    synchronising = turn.timed_step()[1]
    often = [each.payload_bytes for each in ordinary]
    messages = []
    for each in synchronising:
        if not each.payload_bytes:  # PowerSGD reduces what is no matrix also where there is nothing.
            continue
        every = period
        if each.payload_bytes in often:
            often.remove(each.payload_bytes)
            every = 1
        messages.append(_message(each, every))
    return messages


def _message(recorded: Recorded, every: int) -> Message:
    return Message(
        collective=recorded.collective, payload_bytes=recorded.payload_bytes, every=every, ready=recorded.ready
    )


def _codec_seconds(turn: Turn, timed: TimedMethod, bare: float) -> float:
    """Of a step, mean over the period of its kinds' medians: what is not taken by passes without a method."""

    def seconds(synchronises: bool) -> float:
        return median(_timed(turn, synchronises) for _ in range(NUM_CODEC_STEPS))

    over_period = seconds(True)
    if timed.period > 1:
        over_period = (seconds(False) * (timed.period - 1) + over_period) / timed.period
    return max(0.0, over_period - bare)


def _timed(turn: Turn, synchronises: bool) -> float:
    turn.method.go_to(0, synchronises)
    return seconds_to_idle(turn.method.step, turn.device)


def _bare_seconds(setting: TurnContext) -> float:
    """Of the passes alone; gradients are added to what is there, as they are where a method has flat buffers."""
    trainee = setting.trainee()
    trainee.waits = False
    for parameter in trainee.module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return median([seconds_to_idle(trainee.passes, setting.device) for _ in range(1 + NUM_CODEC_STEPS)][1:])
