"""What a method sends and computes, seen on one worker that trains alone: its messages, and its codec's time."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, median

import torch

from algorithms import DistributedOptimizer
from algorithms.core.stages import EarlyMessage
from harness.records.timings import Message, Method
from harness.timing.turn import Setting, Turn
from harness.train.build import build_topology
from harness.train.local_workers import seconds_to_idle

NUM_DRAWS = 1000
"""Steps of an overlapped method over which it is averaged when its blocks' layers are done."""
NUM_KEPT_DRAWS = 50
"""How many of these a record holds."""
NUM_CODEC_STEPS = 3


def described(setting: Setting, methods: Sequence[Method]) -> list[Method]:
    """The methods with their messages and the time of their codecs; the group of `setting` must be of this worker
    alone, and its messages visible."""
    assert setting.visible, "messages that DDP sends in C++ are not seen"
    found, bare = [], _bare_seconds(setting)
    for method in methods:
        turn = Turn(setting, method)
        known = {"messages": messages_of(turn), "codec_alone_seconds": max(0.0, _seconds(turn) - bare)}
        found.append(method.model_copy(update=known))
    return found


def messages_of(turn: Turn) -> list[Message]:
    """Say what a worker sends in a period: in every step, and what the synchronising step sends besides."""
    method, optimizer = turn.method, turn.optimizer
    messages = _messages_once(turn)
    if "topology" in method.settings:
        # Those of worker 0; each other worker's neighbours are as many ranks further on.
        topology = build_topology(method.label, method.settings["topology"])
        rounds = tuple(mixing.receivers[0] for mixing in topology.rounds(turn.setting.num_workers))
        return [message.model_copy(update={"rounds": rounds}) for message in messages]
    if not method.overlap or not isinstance(optimizer, DistributedOptimizer):
        return messages
    steps, done = range(method.period, (NUM_DRAWS + 1) * method.period, method.period), turn.setting.gradients.done
    draws = [early_begins(optimizer.early_messages(step), done) for step in steps]
    ready = [[draw.get(8 * message.payload_bytes, 1.0) for draw in draws] for message in messages]
    return [
        message.model_copy(update={"ready": mean(own), "ready_draws": tuple(own[:NUM_KEPT_DRAWS])})
        for message, own in zip(messages, ready, strict=True)
    ]


def early_begins(messages: Sequence[EarlyMessage], done: Sequence[float]) -> dict[int, float]:
    """When a step's early messages may begin, one after the other, by payload in bits.

    Args:
        done: by tensor, the share of the backward pass that is over when its gradient is there.
    """
    begun, reached = {}, 0.0
    for message in sorted(messages, key=lambda each: -each.tensors[0]):
        reached = max(reached, *(done[number] for number in message.tensors))
        begun[message.payload_bits] = reached
    return begun


def _messages_once(turn: Turn) -> list[Message]:
    """What ordinary steps send too is sent in each step, the rest of a synchronising step's once in a period."""
    period, often = turn.method.period, list[int]()
    if period > 1:
        turn.go_to(0, False)
        often = [each.payload_bytes for each in turn.timed_step()[1]]
    turn.go_to(0, True)
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


def _seconds(turn: Turn) -> float:
    """Seconds of a step: the mean over the period of its kinds' medians."""
    period, seconds = turn.method.period, {}
    for synchronises in [True] if period == 1 else [False, True]:
        taken = []
        for _ in range(NUM_CODEC_STEPS):
            turn.go_to(0, synchronises)
            taken.append(seconds_to_idle(turn.step, turn.setting.device))
        seconds[synchronises] = median(taken)
    return (seconds.get(False, 0.0) * (period - 1) + seconds[True]) / period


def _bare_seconds(setting: Setting) -> float:
    """Seconds of the passes alone; gradients are added to what is there, as where a method has flat buffers."""
    trainee = setting.trainee()
    for parameter in trainee.module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return median([seconds_to_idle(trainee.passes, setting.device) for _ in range(1 + NUM_CODEC_STEPS)][1:])
