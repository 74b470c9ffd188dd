"""Reading batches of JPEG files ahead of their use, by threads of this process or by processes of their own."""

from __future__ import annotations

import io
import itertools
import multiprocessing
import multiprocessing.util
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from harness.spec import SpecError
from harness.tasks.augment import Box, crop_box
from harness.tasks.errors import DataError

MAX_READERS = 8
"""Readers where nobody says how many; fewer where there are fewer cores."""

READING_SECONDS = 1.2e-3
"""Of a modern core for a training image of ImageNet, from the file to the crop; what a plan reckons with."""

UNDECODABLE = (UnidentifiedImageError, OSError, SyntaxError, ValueError, RuntimeError, Image.DecompressionBombError)
"""What decoders raise at the contents of a file."""


@dataclass(frozen=True)
class CropRow:
    """One image's draws of a random resized crop; see `augment.Draws`."""

    attempts: Sequence[Sequence[float]]
    place: Sequence[float]
    flip: bool


@dataclass(frozen=True)
class ReadRequest:
    """A batch to read: training crops where `crops` is given, else central crops of `side` after resizing."""

    paths: Sequence[str]
    side: int
    resize: int
    crops: Sequence[CropRow] | None = None


@dataclass(frozen=True)
class Reply:
    """Pixels, shape (batch, 3, side, side), and for each position that could not be decoded the reason."""

    images: npt.NDArray[np.uint8]
    failures: dict[int, str]


class Readers:
    """Who reads: `processes` processes, or where that is 0 `threads` threads of this process; shared by its workers.

    Threads are the default. Decoding and resizing hold no lock of Python's, so they scale, start at once, and need no
    shared memory. Processes take the rest, 0.1 to 0.2 ms of Python an image, off the process that trains.
    """

    def __init__(self, processes: int, threads: int) -> None:
        self.processes, self.threads = processes, threads
        self._pool: Executor | None = None
        self._lock = threading.Lock()

    @property
    def number(self) -> int:
        return self.processes or self.threads

    def replies(self, requests: Iterable[ReadRequest]) -> Iterator[Reply]:
        """The replies in the order of the requests, read ahead so that every reader has work.

        Raises:
            DataError: a file cannot be read.
            RuntimeError: a reader process died.
        """
        pool, waiting, ahead = self._readers(), iter(requests), deque[Future[Reply]]()
        try:
            while True:
                ahead.extend(
                    pool.submit(read, each) for each in itertools.islice(waiting, self.number + 1 - len(ahead))
                )
                if not ahead:
                    return
                yield ahead.popleft().result()
        except BrokenProcessPool:
            raise RuntimeError(
                "a loader process died, probably for want of memory; set CSER_LOADER_PROCESSES to a smaller number, "
                "or to 0 to read with threads"
            ) from None
        finally:
            for future in ahead:
                future.cancel()

    def _readers(self) -> Executor:
        with self._lock:
            if self._pool is None and self.processes:
                # Forked processes would inherit locks that other threads of this one hold.
                context = multiprocessing.get_context("forkserver")
                context.set_forkserver_preload([__name__])
                self._pool = ProcessPoolExecutor(self.processes, context, _begin_process)
            elif self._pool is None:
                self._pool = ThreadPoolExecutor(self.threads, "reader", _one_thread)
            else:
                return self._pool
            # A process that multiprocessing started waits for its own before it ends its pools, so forever.
            # The priority is above that of the pool's queues, which carry the order to end.
            multiprocessing.util.Finalize(self, self._pool.shutdown, kwargs={"cancel_futures": True}, exitpriority=100)
            return self._pool


def new_readers(processes: int | None) -> Readers:
    """As many as said, or as $CSER_LOADER_PROCESSES says, or threads: `num_readers` for the cores of this local rank.

    Raises:
        SpecError: the environment variable is not a number of processes.
    """
    if processes is None:
        said = os.environ.get("CSER_LOADER_PROCESSES") or "0"
        if not said.isdecimal():
            raise SpecError(f"CSER_LOADER_PROCESSES is {said!r}; make it a number of processes, or 0 for threads")
        processes = int(said)
    return Readers(processes, num_readers(own_cores()))


def num_readers(cores: int) -> int:
    """Threads that read for a local rank with so many cores: one for each, 8 at most."""
    return min(max(1, cores), MAX_READERS)


def own_cores() -> int:
    """Cores that this local rank has to itself: of those that it may use its share, unless they are its own already.

    Slurm binds each task to its own cores, torchrun lets all ranks of a machine use all of them. Where Slurm binds no
    task, it still says how many each was promised.
    """
    usable, ranks = len(os.sched_getaffinity(0)), _number("LOCAL_WORLD_SIZE") or 1
    share = max(1, (os.cpu_count() or usable) // ranks)
    cores = usable if usable <= share else usable // ranks
    return max(1, min(cores, _number("SLURM_CPUS_PER_TASK") or cores))


def _number(variable: str) -> int:
    """What the environment says; 0 where that is no number."""
    said = os.environ.get(variable, "")
    return int(said) if said.isdecimal() else 0


def _one_thread() -> None:
    """The readers are many already."""
    torch.set_num_threads(1)


def _begin_process() -> None:
    _one_thread()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that trains, and that ends this one
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """A reader of a process that was killed would wait for work forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def read(request: ReadRequest) -> Reply:
    """Read one batch.

    Raises:
        DataError: a file cannot be read; one that cannot be decoded is told in the reply.
    """
    side = request.side
    images, failures = np.zeros((len(request.paths), 3, side, side), dtype=np.uint8), {}
    pixels = torch.from_numpy(images)
    for position, path in enumerate(request.paths):
        raw = read_file(path)
        try:
            if request.crops is None:
                pixels[position] = central_crop(raw, side, request.resize)
            else:
                pixels[position] = random_crop(raw, side, request.crops[position])
        except UNDECODABLE as error:
            failures[position] = str(error) or type(error).__name__
    return Reply(images, failures)


def read_file(path: str) -> bytes:
    """Its contents. Raises DataError where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); put it back, or make it readable") from None


def random_crop(raw: bytes, side: int, row: CropRow) -> Tensor:
    """A random resized crop, shape (3, side, side).

    Where the box is at least twice, four or eight times `side` both ways, the JPEG is decoded at 1/2, 1/4 or 1/8:
    the mean over 2 x 2, 4 x 4 or 8 x 8 pixels that this amounts to stands for part of the bilinear filter's own
    averaging. Elsewhere the pixels are those of decoding in full, cropping and resizing.
    """
    image = Image.open(io.BytesIO(raw))
    box = crop_box(*image.size, row.attempts, row.place)
    scale = next((s for s in (8, 4, 2) if min(box.width, box.height) >= s * side), 1)
    if scale > 1 and image.format == "JPEG":
        crop = _scaled_crop(image, box, scale, side)
    else:
        pixels = _decoded(raw, image)
        crop = _resized(pixels[:, box.top : box.top + box.height, box.left : box.left + box.width], side, side)
    return crop.flip(-1) if row.flip else crop


def central_crop(raw: bytes, side: int, resize: int) -> Tensor:
    """The image with its shorter side resized to `resize`, then its centre; shape (3, side, side)."""
    pixels = _decoded(raw, Image.open(io.BytesIO(raw)))
    height, width = pixels.shape[1:]
    if width < height:
        width, height = resize, resize * height // width
    else:
        width, height = resize * width // height, resize
    pixels = _resized(pixels, height, width)
    # As torchvision's CenterCrop rounds it.
    top, left = round((height - side) / 2), round((width - side) / 2)
    return pixels[:, top : top + side, left : left + side]


def _decoded(raw: bytes, image: Image.Image) -> Tensor:
    """All pixels as red, green and blue, shape (3, height, width)."""
    if image.format == "JPEG" and image.mode in ("RGB", "L"):
        try:
            # The same libjpeg-turbo as PIL's with fewer copies. A bytearray, since torch warns about read-only memory.
            pixels: Tensor = decode_jpeg(torch.frombuffer(bytearray(raw), dtype=torch.uint8), ImageReadMode.RGB)
            return pixels
        except RuntimeError:
            pass  # PIL says better what is wrong, and takes some files that this does not.
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def _resized(pixels: Tensor, height: int, width: int) -> Tensor:
    """Bilinear with antialiasing, which is PIL's and torchvision's; on bytes, so rounded as theirs are."""
    resized: Tensor = torch.nn.functional.interpolate(
        pixels[None], (height, width), mode="bilinear", align_corners=False, antialias=True
    )
    return resized[0]


def _scaled_crop(image: Image.Image, box: Box, scale: int, side: int) -> Tensor:
    width, height = image.size
    image.draft("RGB", (width // scale, height // scale))
    right, bottom = min((box.left + box.width) / scale, image.width), min((box.top + box.height) / scale, image.height)
    within = (box.left / scale, box.top / scale, right, bottom)
    crop = image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR, box=within)
    return torch.from_numpy(np.array(crop)).permute(2, 0, 1)
