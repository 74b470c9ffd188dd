"""The next step's batches, made ready on a stream of their own while the GPU is at this step."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from harness.tasks.task import Batch


class Prefetched(Iterator[list[Batch]]):
    """The batches of `batches`, in order, for the stream that is current where they are taken.

    What is asked for beforehand by `prepare` goes on beside the work that was queued until then.

    Args:
        device: a GPU; what is on it by now may be read on the new stream.
    """

    def __init__(self, batches: Iterator[list[Batch]], device: torch.device) -> None:
        self._batches, self._device = batches, device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._stream.wait_stream(torch.cuda.current_stream(device))
        self._prepared: tuple[list[Batch], torch.cuda.Event] | None = None

    def prepare(self) -> None:
        """Make the next batches ready, where there are any and they are not."""
        if self._prepared is None:
            with torch.cuda.stream(self._stream):
                batches = next(self._batches, None)
                if batches is not None:
                    self._prepared = batches, self._stream.record_event()

    def __next__(self) -> list[Batch]:
        self.prepare()
        if self._prepared is None:
            raise StopIteration
        batches, ready = self._prepared
        self._prepared = None
        current = torch.cuda.current_stream(self._device)
        current.wait_event(ready)
        for batch in batches:
            for tensor in batch:
                tensor.record_stream(current)  # or its memory would be given away when the host drops it
        return batches
