"""Each worker's forward and backward pass as one CUDA graph: told to the GPU once, then replayed on fixed addresses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from harness.tasks.task import Batch

Passes = Callable[..., Tensor]
"""Of one worker: takes inputs and labels, adds to the gradients, and gives the mean loss, detached, of shape ()."""

WARM_UP = 3
"""Rounds before a capture, in which libraries begin and cuDNN tries its algorithms; as many as PyTorch advises."""


class NoGraphsError(RuntimeError):
    """Passes cannot be graphs; the message is one sentence."""


def check_possible(device: torch.device, stacked: bool, batched: bool, scaled: bool, varying: bool) -> None:
    """Raises NoGraphsError where it is known beforehand.

    Args:
        stacked: all workers' parameters and gradients are rows of tensors that stay where they are.
        batched: these go through all passes at once.
        scaled: losses are scaled, by a number of each worker's own.
        varying: batches differ in shape from step to step.
    """
    reasons = {
        "torch has no GPU here": device.type != "cuda",
        "in fp16 each worker has a loss scale, and so a thread of its own": scaled,
        "workers are not stacked, as they are with --workers stacked": not stacked,
        "all workers' passes are one already": batched,
        "sentences vary in length, and a graph takes batches of one shape": varying,
    }
    for reason, holds in reasons.items():
        if holds:
            raise NoGraphsError(reason)


def captured(passes: Sequence[Passes], models: Sequence[nn.Module], batches: Sequence[Batch]) -> list[Passes]:
    """The workers' passes as graphs for batches like these; those of another shape or type go the old way.

    Graphs share their memory, so they must be replayed one after the other, on one stream. A loss is overwritten by the
    next replay.

    Args:
        models: what the passes train, a worker each. Gradients must be zero, and are, and buffers are what they were.

    Raises:
        NoGraphsError: the passes draw random numbers, which a graph would not draw as they do, or cannot be captured.
    """
    device = batches[0][0].device
    with _as_before(models, device):
        _warm_up(passes, batches, device)
        graphs, pool = list[Passes](), torch.cuda.graph_pool_handle()
        for own, model, (inputs, labels) in zip(passes, models, batches, strict=True):
            static, loss = (inputs.clone(), labels.clone()), torch.zeros((), device=device)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                loss.copy_(own(*static))  # to memory that is not the graphs' own
            graphs.append(_replaying(graph.replay, own, model, static, loss))
    return graphs


def _warm_up(passes: Sequence[Passes], batches: Sequence[Batch], device: torch.device) -> None:
    drawn = torch.cuda.get_rng_state(device)
    current, aside = torch.cuda.current_stream(device), torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    aside.wait_stream(current)
    with torch.cuda.stream(aside):
        for _ in range(WARM_UP):
            for own, batch in zip(passes, batches, strict=True):
                own(*batch)
    current.wait_stream(aside)
    if not torch.equal(drawn, torch.cuda.get_rng_state(device)):
        torch.cuda.set_rng_state(drawn, device)
        raise NoGraphsError("the network draws random numbers, as dropout does")


@contextmanager
def _as_before(models: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
    """Afterwards gradients are zero, and buffers and the current stream what they were: also where a capture failed."""
    stream, kept = torch.cuda.current_stream(device), [[each.clone() for each in model.buffers()] for model in models]
    try:
        yield
    except NoGraphsError:
        raise
    except RuntimeError as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise NoGraphsError(f"a capture failed ({first})") from error
    finally:
        torch.cuda.set_stream(stream)  # torch's own context leaves another where the end of a capture fails
        with torch.no_grad():
            for model, values in zip(models, kept, strict=True):
                for buffer, value in zip(model.buffers(), values, strict=True):
                    buffer.copy_(value)
                for parameter in model.parameters():
                    assert parameter.grad is not None
                    parameter.grad.zero_()


def _replaying(replay: Callable[[], None], eager: Passes, model: nn.Module, static: Batch, loss: Tensor) -> Passes:
    (inputs, labels), gradient = static, next(model.parameters()).grad
    assert gradient is not None
    like = [(each.shape, each.dtype, each.device) for each in static]

    def passes(new_inputs: Tensor, new_labels: Tensor) -> Tensor:
        if [(each.shape, each.dtype, each.device) for each in (new_inputs, new_labels)] != like:
            return eager(new_inputs, new_labels)
        inputs.copy_(new_inputs)
        labels.copy_(new_labels)
        replay()
        # What a graph writes autograd does not see. Rows of stacked gradients have one counter.
        torch.autograd.graph.increment_version(gradient)
        return loss

    return passes
