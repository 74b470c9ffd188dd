"""Overlap: messages that depend on a few tensors' gradients go during the backward pass.

A sparsifier's choice is known before the backward pass. When the gradients of all tensors that a
message touches are done, the message is computed on the side, by the arithmetic that `step()` will
use, and its mean is begun. `step()` goes its usual way; where it asks for that mean it finds it
begun, or finished. What a method itself begins for later steps (`core.exchange.begin_exchange`)
goes on beside them in the same way.
"""

import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from cser_bench.algorithms.core.flat import FlatBuffers
from cser_bench.algorithms.core.stages import EarlyMessage
from cser_bench.algorithms.core.traffic import Purpose, Traffic
from cser_bench.algorithms.core.warn import warn_script

T = TypeVar("T", bound=tuple[Tensor | None, ...])


class EarlyMeans:
    """The collectives' side of overlap: at most one mean under way for each purpose.

    Args:
        mean_: replaces a tensor by its mean over workers, and returns what rounding it left. It
            needs a process group of its own, since the main thread may use the other while a mean
            is under way.
    """

    def __init__(self, mean_: Callable[[Tensor], Tensor | None]) -> None:
        self._mean_ = mean_
        self._begun: dict[
            Purpose, tuple[Tensor, Callable[[], tuple[Tensor, Tensor | None]]]
        ] = {}
        """By purpose the message, and what waits for its mean and for what rounding that left."""
        # One thread: means must begin in the order of calls, which is the same on all workers.
        self._helper = ThreadPoolExecutor(1, "early_means")
        self._stream: torch.cuda.Stream | None = None

    def begin(self, message: Tensor, purpose: Purpose) -> None:
        """Begin the mean of `message`, which must not be changed.

        All workers must begin the same in the same order.

        Raises:
            RuntimeError: a mean for this purpose is under way.
        """
        if purpose in self._begun:
            raise RuntimeError(
                "two optimisers send early through one ProcessGroupCollectives(overlap=True); give "
                "each its own"
            )
        # The message itself is kept, to be compared with what step() asks for.
        mean = message.clone()
        self._begun[purpose] = (
            message,
            self.beside(lambda: (mean, self._mean_(mean)), mean),
        )

    def beside(self, do: Callable[[], T], like: Tensor) -> Callable[[], T]:
        """Have done on the side, in the order of calls, what reads tensors such as `like`.

        Returns what waits for it.
        """
        # On a CPU the call that communicates holds the thread that makes it: that is another one.
        if not like.is_cuda:
            return self._helper.submit(do).result
        # On a GPU no thread is needed: the host goes on while the work waits for its turn in a
        # stream of its own.
        if self._stream is None:
            self._stream = torch.cuda.Stream(like.device)  # type: ignore[no-untyped-call]
        stream = self._stream
        # What `do` reads may still be under work in this thread's stream.
        stream.wait_stream(torch.cuda.current_stream(like.device))
        with torch.cuda.stream(stream):
            made = do()
            done = stream.record_event()
        # The allocator must not give the memory away before this stream has read it.
        like.record_stream(stream)

        def wait() -> T:
            current = torch.cuda.current_stream(like.device)
            current.wait_event(done)
            # Made in the other stream and read in this one, which the allocator must know, too.
            for tensor in made:
                if tensor is not None:
                    tensor.record_stream(current)
            return made

        return wait

    def finish_(self, tensor: Tensor, purpose: Purpose) -> tuple[bool, Tensor | None]:
        """Replace `tensor` by its mean if that was begun.

        Returns whether it was, and what rounding it left.

        Raises:
            RuntimeError: what was begun is the mean of something else.
            CollectiveError: as for any collective.
        """
        if purpose not in self._begun:
            return False, None
        message, wait = self._begun.pop(purpose)
        # To the bit: a script that clips, say, would else go on with messages of other gradients.
        same = tensor.shape == message.shape and torch.allclose(
            tensor, message, 0, 0, equal_nan=True
        )
        # Waited for in any case, as the other workers' collective is under way.
        mean, rest = wait()
        if not same:
            raise RuntimeError(
                f"overlap: the {purpose.value} message of this step differs from what was sent "
                "during the backward pass, because gradients, parameters or the learning rate "
                "were changed between backward() and step() (clipped, say); make the collectives "
                "with overlap=False"
            )
        # Copied, since the caller's tensor is to hold the mean as if it had been sent now.
        tensor.copy_(mean)
        return True, rest

    def drop(self) -> list[int]:
        """Wait for the messages that were begun, forget them, and return their bits."""
        waiting = [wait for _, wait in self._begun.values()]
        self._begun = {}
        bits = []
        # A collective that other workers have joined cannot be cancelled, only waited for.
        for wait in waiting:
            mean, _ = wait()
            bits.append(8 * mean.element_size() * mean.numel())
        return bits

    def close(self) -> None:
        """Wait until nothing is under way, and end the thread that did it."""
        self._helper.shutdown()
        if self._stream is not None:
            self._stream.synchronize()


class Reducer:
    """The optimiser's side, as in DDP.

    Watches the gradients, begins each early message as soon as it can be computed.

    Messages are begun in one fixed order, so that all workers' collectives match; what is not ready
    by the time of `step()` is begun there. Gradients of several backward passes add up: the last
    pass counts, and what an earlier one sent is dropped and counted as control.

    Args:
        early, traffic: where means are begun, None where nothing is sent early, and what was sent
        in vain is counted.
        list_messages: returns the early messages of the step that comes next.
        message_of: returns a payload as it is sent, rounded where messages are.
    """

    def __init__(
        self,
        flat: FlatBuffers,
        early: EarlyMeans | None,
        traffic: Traffic,
        list_messages: Callable[[], Sequence[EarlyMessage]],
        message_of: Callable[[Tensor], Tensor],
    ) -> None:
        self._flat = flat
        self._early = early
        self._traffic = traffic
        self._list_messages = list_messages
        self._message_of = message_of
        self._waiting: deque[EarlyMessage] | None = None
        """Messages of the step that comes next which are not begun yet; None where these are not
        listed yet."""
        self._finished: set[int] = set()
        self._paused = False
        self._stopped = early is None
        for number, parameter in enumerate(flat.tensors):
            # Torch registers no hook on a parameter that requires no gradient.
            if parameter.requires_grad and early is not None:
                # Weakly: a parameter that outlives its optimiser must not keep it, or feed it.
                hook = partial(_gradient_done, weakref.ref(self), number)
                parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def gradient_done(self, number: int) -> None:
        """Begin what can be, now that tensor `number` has its gradient of this backward pass."""
        if self._stopped or not self._flat.holds(number):
            return
        # A second gradient in one step: what was sent of the first is not the whole.
        # After a step all of its tensors count as finished still, but then nothing is under way.
        if self._paused or number in self._finished:
            self.drop()
        # A pass that another follows has not the whole gradient to send.
        if self._paused:
            return
        # The payload is read from the vector, and autograd may have made a gradient outside it.
        self._flat.collect_gradient(number)
        waiting = self._listed()
        self._finished.add(number)
        # Only ever the next in line, also if a later one is ready: workers' backward passes may
        # end in other orders, and their collectives must not.
        while waiting and self._finished.issuperset(waiting[0].tensors):
            self._begin(waiting.popleft())

    def begin_rest(self) -> None:
        """Begin what is left, now that all gradients are done and the step begins."""
        if not self._stopped:
            # Also where a gradient is missing here: another worker may have begun the same.
            for message in self._listed():
                self._begin(message)
            self._waiting = None

    def drop(self) -> None:
        """Forget this step's messages, also those under way."""
        if self._early is not None:
            # Sent in vain, and so no part of what training needs.
            for bits in self._early.drop():
                self._traffic.add(Purpose.CONTROL, bits)
        self._waiting = None

    def stop(self, reason: str) -> None:
        """Send nothing early from now on."""
        if not self._stopped:
            self.drop()
            self._stopped = True
            warn_script(f"overlap: {reason}, so nothing is sent before step()")

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Inside, backward passes begin nothing."""
        # One may be inside another.
        before = self._paused
        self._paused = True
        try:
            yield
        finally:
            self._paused = before

    def _listed(self) -> deque[EarlyMessage]:
        if self._waiting is None:
            self.drop()
            # Gradients are done from the last tensor to the first, so this is about the order of
            # readiness.
            messages = list(self._list_messages())
            messages.sort(key=lambda message: -message.tensors[0])
            self._waiting = deque(messages)
            self._finished = set()
        return self._waiting

    def _begin(self, message: EarlyMessage) -> None:
        assert self._early is not None
        # Rounded here as step() will round it, since the two are compared to the bit.
        rounded = self._message_of(message.payload())
        self._early.begin(rounded, message.purpose)


def _gradient_done(
    watching: weakref.ref[Reducer], number: int, parameter: Tensor
) -> None:
    reducer = watching()
    if reducer is not None:
        reducer.gradient_done(number)
