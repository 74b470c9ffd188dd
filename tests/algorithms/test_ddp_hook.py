"""Error feedback as a hook of DDP, in real processes: from its definition, and beside EFSGD."""

# No "from __future__ import annotations": DDP looks at the hooks' annotations, which must be types.

import copy
import io
import multiprocessing
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed import GradBucket  # type: ignore[attr-defined]
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from cser_bench.algorithms import (
    EFSGD,
    CollectiveError,
    Compressor,
    ErrorFeedbackState,
    ProcessGroupCollectives,
    Purpose,
    QuantisedBlocks,
    RandomK,
    TopK,
    error_feedback_hook,
)
from tests.algorithms import transcription
from tests.algorithms.transcription import Compress

WORLD_SIZES = (2, pytest.param(4, marks=pytest.mark.whole))
NUM_STEPS = 5
RATIO = 6
BLOCK_SIZE = 8
BUCKET_MB = 1e-3
"""So that the model's 265 numbers of 8 bytes fill two buckets at least."""
LEARNING_RATE = 0.1
PATIENCE = timedelta(seconds=60)
COMPRESSORS: dict[str, Compressor] = {
    "top-k": TopK(RATIO),
    "4 bits": QuantisedBlocks(4, block_size=BLOCK_SIZE),
}
Gradients = dict[str, Tensor]
"""By parameter, flat in the order of memory."""
Future = torch.futures.Future[Tensor]


class Net(nn.Sequential):
    """A convolution whose weight is channels last, and two matrices."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(
            nn.Conv2d(2, 4, 3),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(36, 5),
            nn.Tanh(),
            nn.Linear(5, 3),
        )
        self.double().to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class HalfUsed(Net):
    """With a parameter that no forward pass uses."""

    def __init__(self) -> None:
        super().__init__()
        numbers = torch.ones(7, dtype=torch.float64)
        self.unused = nn.Parameter(numbers)


class Autocast(Net):
    """Its forward pass is in fp16, as accelerate makes it."""

    def forward(self, inputs: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.float16):
            return super().forward(inputs)


@dataclass(frozen=True)
class Case:
    """A training with the hook."""

    compressor: str = "top-k"
    model: type[nn.Module] = Net
    options: dict[str, Any] = field(default_factory=dict)
    """Options of DDP."""
    num_passes: int = 1
    """Backward passes of a step, all but the last in `no_sync`."""
    resumed_after: int | None = None
    """The step after which all is made anew, and the hook's state loaded."""
    overflows_at: int | None = None
    """The step at which worker 1's loss is infinite."""


CASES = {
    "top-k": Case(),
    "4 bits": Case("4 bits"),
    "gradients as views": Case(options={"gradient_as_bucket_view": True}),
    "no_sync": Case(num_passes=3),
    "static graph": Case("4 bits", HalfUsed, {"static_graph": True}),
    "resumed": Case("4 bits", resumed_after=3),
    "overflow": Case(overflows_at=3),
    "overflow in 4 bits": Case("4 bits", overflows_at=3),
}


@dataclass
class Found:
    """What one worker saw of a case, by step."""

    local: list[Gradients] = field(default_factory=list)
    """Its own gradients, from a copy of the model without DDP."""
    mean: list[Gradients] = field(default_factory=list)
    """What the hook made of them."""
    buckets: list[list[tuple[str, ...]]] = field(default_factory=list)
    """Names of the parameters of each bucket, in its order."""
    sent: list[tuple[int, int, int]] = field(default_factory=list)
    """Bits, collectives and gathered bits up to the last step before another start."""
    shares: list[float] = field(default_factory=list)
    """Shares of DDP's traffic, likewise."""
    errors: Gradients = field(default_factory=dict)


def flat(tensor: Tensor) -> Tensor:
    """Numbers in the order of the parameter's memory."""
    if tensor.dim() == 4:
        tensor = tensor.permute(0, 2, 3, 1)
    return tensor.detach().reshape(-1).clone()


def gradients(model: nn.Module) -> Gradients:
    """Zeros where there is none."""
    found = {}
    for name, parameter in model.named_parameters():
        gradient = (
            torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        )
        found[name] = flat(gradient)
    return found


def loss_of(model: nn.Module, rank: int, number: int) -> Tensor:
    """The loss of this worker's batch of this number."""
    seed = 100 * number + rank
    generator = torch.Generator().manual_seed(seed)
    shape = (6, 2, 5, 5)
    inputs = torch.randn(shape, generator=generator, dtype=torch.float64)
    return model(inputs).square().mean()  # type: ignore[no-any-return]


def watching(
    buckets: list[list[tuple[str, ...]]], names: dict[Tensor, str]
) -> Callable[..., Any]:
    """The hook, which notes each bucket's parameters."""

    def hook(state: ErrorFeedbackState, bucket: GradBucket) -> Future:
        parameters = bucket.parameters()
        own = tuple(names[parameter] for parameter in parameters)
        buckets[-1].append(own)
        return error_feedback_hook(state, bucket)

    return hook


def in_ddp(
    model: nn.Module, compressor: Compressor, found: Found, options: dict[str, Any]
) -> tuple[DistributedDataParallel, ErrorFeedbackState]:
    wrapper = DistributedDataParallel(model, bucket_cap_mb=BUCKET_MB, **options)  # type: ignore[arg-type]
    state = ErrorFeedbackState(wrapper, compressor)
    names: dict[Tensor, str] = {
        parameter: name for name, parameter in model.named_parameters()
    }
    watched = watching(found.buckets, names)
    wrapper.register_comm_hook(state, watched)
    return wrapper, state


def note_sent(found: Found, state: ErrorFeedbackState) -> None:
    entry = state.traffic[Purpose.GRADIENT]
    counted = (entry.bits, entry.collectives, entry.gathered_bits)
    found.sent.append(counted)
    found.shares.append(state.traffic_share())


def through(state: dict[str, Any]) -> dict[str, Any]:
    """A state saved and loaded."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file)  # type: ignore[no-any-return]


def trained(rank: int, case: Case) -> Found:
    found = Found()
    model = case.model()
    compressor = COMPRESSORS[case.compressor]
    wrapper, state = in_ddp(model, compressor, found, case.options)
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE)
    for step in range(1, NUM_STEPS + 1):
        found.buckets.append([])
        scale = torch.inf if step == case.overflows_at and rank == 1 else 1.0
        numbers = [10 * step + number for number in range(case.num_passes)]
        alone = copy.deepcopy(model)
        alone.zero_grad()
        for number in numbers:
            loss = scale * loss_of(alone, rank, number)
            loss.backward()
        found.local.append(gradients(alone))
        optimizer.zero_grad()
        with wrapper.no_sync():
            for number in numbers[:-1]:
                loss = scale * loss_of(wrapper, rank, number)
                loss.backward()
        loss = scale * loss_of(wrapper, rank, numbers[-1])
        loss.backward()
        found.mean.append(gradients(model))
        if step != case.overflows_at:
            optimizer.step()
        if step == case.resumed_after:
            note_sent(found, state)
            saved = through(state.state_dict())
            former = model
            model = case.model()
            model.load_state_dict(former.state_dict())
            wrapper, state = in_ddp(model, compressor, found, case.options)
            state.load_state_dict(saved)
            optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE)
    note_sent(found, state)
    found.errors = {name: flat(error) for name, error in state.errors.items()}
    return found


def beside_efsgd(
    compressor: Compressor, rank: int
) -> tuple[list[Tensor], list[Tensor], int]:
    """Parameters after the same steps with the hook and with EFSGD, which has an optimiser for each
    bucket; and how many buckets there were."""
    numbers = {
        "lr": LEARNING_RATE,
        "momentum": 0.9,
        "nesterov": True,
        "weight_decay": 0.01,
    }
    found = Found()
    model = Net()
    wrapper, state = in_ddp(model, compressor, found, {})
    # Once, so that DDP has made the buckets that stay; what is not sent of it is forgotten.
    found.buckets.append([])
    loss_of(wrapper, rank, 0).backward()
    zeros = {}
    for name, error in state.errors.items():
        zeros[name] = torch.zeros_like(error)
    loaded = {**state.state_dict(), "errors": zeros}
    state.load_state_dict(loaded)
    optimizer = torch.optim.SGD(model.parameters(), **numbers)  # type: ignore[arg-type]
    found.buckets.clear()
    for step in range(1, NUM_STEPS + 1):
        found.buckets.append([])
        optimizer.zero_grad()
        loss_of(wrapper, rank, step).backward()
        optimizer.step()
    [buckets] = {tuple(each) for each in found.buckets}

    own = Net()
    parameters = dict(own.named_parameters())
    optimizers = []
    for names in buckets:
        own_parameters = [parameters[name] for name in names]
        group = {"params": own_parameters, **numbers}
        del group["nesterov"]
        each = EFSGD(
            [group],
            lr=LEARNING_RATE,
            compressor=compressor,
            error_feedback_on="gradients",
            collectives=ProcessGroupCollectives(),
        )
        optimizers.append(each)
    for step in range(1, NUM_STEPS + 1):
        for each in optimizers:
            each.zero_grad()
        loss_of(own, rank, step).backward()
        for each in optimizers:
            each.step()
    hooked = [flat(p) for p in model.parameters()]
    unhooked = [flat(p) for p in own.parameters()]
    return hooked, unhooked, len(buckets)


class Watch(TorchDispatchMode):
    """Notes which operations run, and which of them a GPU's host would have to wait for."""

    WAITS = (
        "_local_scalar_dense",
        "item",
        "nonzero",
        "is_nonzero",
        "equal",
        "allclose",
    )
    BY_SIZE = (
        "masked_select",
        "unique",
        "unique_dim",
        "_unique2",
        "bincount",
        "argwhere",
    )
    """Their results' sizes depend on values."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.waiting: set[str] = set()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Any = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = func.overloadpacket.__name__
        self.seen.add(name)
        if name in self.WAITS or name in self.BY_SIZE:
            self.waiting.add(name)
        if name == "index" and any(
            each is not None and each.dtype == torch.bool for each in args[1]
        ):
            self.waiting.add("index by a mask")
        return func(*args, **(kwargs or {}))


def watched(compressor: Compressor, rank: int) -> Watch:
    """What runs in two steps where all work is done in this thread, as on a GPU it is begun."""
    watch = Watch()
    wrapper = DistributedDataParallel(Net(), bucket_cap_mb=BUCKET_MB)
    state = ErrorFeedbackState(wrapper, compressor)
    state.beside = lambda work, like: work()  # type: ignore[assignment, return-value]

    def hook(state: ErrorFeedbackState, bucket: GradBucket) -> Future:
        with watch:
            return error_feedback_hook(state, bucket)

    wrapper.register_comm_hook(state, hook)
    for step in range(2):
        loss_of(wrapper, rank, step).backward()
    return watch


def overlapped(compressor: Compressor, rank: int, events: dist.Store) -> list[bool]:
    """Whether each bucket's future was done on worker 0 when the hook returned; worker 1 begins each
    bucket only then."""
    done = []
    wrapper = DistributedDataParallel(Net(), bucket_cap_mb=BUCKET_MB)

    def hook(state: ErrorFeedbackState, bucket: GradBucket) -> Future:
        key = f"{compressor} {len(done)}"
        if rank == 1:
            events.wait([key], PATIENCE)
        future = error_feedback_hook(state, bucket)
        done.append(future.done())
        if rank == 0:
            events.set(key, "returned")
        return future

    wrapper.register_comm_hook(ErrorFeedbackState(wrapper, compressor), hook)
    for step in range(2):
        loss_of(wrapper, rank, step).backward()
    return done


def refusals(rank: int, world_size: int) -> dict[str, str]:
    """What each mistake is told."""
    model = DistributedDataParallel(Net())
    state = ErrorFeedbackState(model, TopK(RATIO))
    model.register_comm_hook(state, error_feedback_hook)
    saved = state.state_dict()
    first = next(iter(saved["errors"]))
    other = DistributedDataParallel(Net())
    other.register_comm_hook(state, error_feedback_hook)
    layer = nn.Embedding(20, 3, sparse=True)
    embedding = DistributedDataParallel(layer)
    embedding.register_comm_hook(
        ErrorFeedbackState(embedding, TopK(RATIO)), error_feedback_hook
    )
    inside = DistributedDataParallel(Autocast())
    inside.register_comm_hook(
        ErrorFeedbackState(inside, TopK(RATIO)), error_feedback_hook
    )
    broken = DistributedDataParallel(Net())
    broken_state = ErrorFeedbackState(broken, TopK(RATIO))
    broken.register_comm_hook(broken_state, error_feedback_hook)

    def fail(*arguments: object) -> None:
        raise CollectiveError("a collective failed: worker 1 is gone")

    broken_state.average_ = fail  # type: ignore[method-assign]

    def autocast() -> None:
        with torch.autocast("cpu", dtype=torch.float16):
            loss_of(model, rank, 0)

    calls: dict[str, Callable[[], object]] = {
        "not in DDP": lambda: ErrorFeedbackState(Net(), TopK(RATIO)),  # type: ignore[arg-type]
        "unused": lambda: ErrorFeedbackState(
            DistributedDataParallel(Net(), find_unused_parameters=True), TopK(RATIO)
        ),
        "compressor": lambda: ErrorFeedbackState(model, RandomK(RATIO)),
        "ratio": lambda: ErrorFeedbackState(model, TopK(1e6)),
        "complex": lambda: ErrorFeedbackState(
            DistributedDataParallel(nn.Linear(2, 2, dtype=torch.complex64)), TopK(1)
        ),
        "fp16": lambda: ErrorFeedbackState(
            DistributedDataParallel(Net().half()), TopK(RATIO)
        ),
        "fp16 autocast": autocast,
        "fp16 autocast inside": lambda: loss_of(inside, rank, 0),
        "workers differ": lambda: ErrorFeedbackState(model, TopK(RATIO + rank)),
        "another number": lambda: state.load_state_dict(
            saved | {"world_size": world_size + 1}
        ),
        "another rank": lambda: state.load_state_dict(saved | {"rank": rank + 1}),
        "another compressor": lambda: state.load_state_dict(
            saved | {"compressor": "TopK(ratio=7)"}
        ),
        "another model": lambda: state.load_state_dict(
            saved | {"errors": saved["errors"] | {first: torch.zeros(2)}}
        ),
        "another DDP": lambda: loss_of(other, rank, 0).backward(),
        "sparse": lambda: embedding(torch.arange(5)).sum().backward(),
        "collective": lambda: loss_of(broken, rank, 0).backward(),
    }
    said = {}
    for name, call in calls.items():
        try:
            call()
            said[name] = "nothing"
        except (RuntimeError, ValueError) as error:
            said[name] = f"{type(error).__name__}: {error}"
    return said


def process(rank: int, folder: Path, world_size: int) -> None:
    torch.set_num_threads(1)
    method = f"file://{folder}/rendezvous"
    dist.init_process_group(
        "gloo", init_method=method, rank=rank, world_size=world_size
    )
    events = dist.FileStore(str(folder / "events"), world_size)
    found = {
        "cases": {name: trained(rank, case) for name, case in CASES.items()},
        "efsgd": {name: beside_efsgd(each, rank) for name, each in COMPRESSORS.items()},
        "overlap": {
            name: overlapped(each, rank, events) for name, each in COMPRESSORS.items()
        },
        "watched": {},
    }
    for name, compressor in COMPRESSORS.items():
        watch = watched(compressor, rank)
        found["watched"][name] = (watch.seen, watch.waiting)
    found["refusals"] = refusals(rank, world_size)
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(
    scope="module", params=WORLD_SIZES, ids=lambda count: f"{count} workers"
)
def workers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """What each worker found."""
    folder = tmp_path_factory.mktemp("ddp_hook")
    multiprocessing.get_context("forkserver").set_forkserver_preload(
        ["torch", "torch._dynamo"]
    )
    arguments = (folder, request.param)
    mp.start_processes(
        process, arguments, nprocs=request.param, start_method="forkserver"
    )
    files = [folder / f"{rank}.pt" for rank in range(request.param)]
    return [torch.load(file, weights_only=False) for file in files]


def joined(parts: Gradients, names: Iterable[str]) -> np.ndarray[Any, Any]:
    arrays = [parts[name].numpy() for name in names]
    return np.concatenate(arrays)


def definition(name: str, numel: int) -> tuple[Compress, int]:
    """C of a bucket of so many numbers, and the bits of its message."""
    if name == "top-k":
        kept = max(1, numel // RATIO)
        bits_of_one = 32 + 32  # a number and an index
        return transcription.top_k(kept), kept * bits_of_one
    blocks = -(-numel // BLOCK_SIZE)
    rounded = transcription.quantised_blocks(4, BLOCK_SIZE)
    return transcription.in_two_stages(rounded, BLOCK_SIZE), blocks * (
        32 + 4 * BLOCK_SIZE
    )


@pytest.mark.parametrize("name", CASES)
def test_the_hook_is_its_definition_whatever_buckets_there_are(
    workers: Any, name: str
) -> None:
    """e <- e + g;  g <- mean(C(e));  e <- e - C(e), with e by parameter."""
    case = CASES[name]
    found: list[Found] = [worker["cases"][name] for worker in workers]
    errors = [
        {key: torch.zeros_like(each) for key, each in found[0].local[0].items()}
        for _ in found
    ]
    for step in range(NUM_STEPS):
        for names in found[0].buckets[step]:
            held = [joined(error, names) for error in errors]
            e = np.array(held)
            gradients = [joined(each.local[step], names) for each in found]
            g = np.array(gradients)
            with np.errstate(invalid="ignore"):
                sent = definition(case.compressor, e.shape[1])[0](
                    step, "gradient", e + g
                )
            for each in found:
                mean = joined(each.mean[step], names)
                if step + 1 == case.overflows_at:
                    assert not np.isfinite(mean).all()
                else:
                    np.testing.assert_allclose(
                        mean, sent.mean(axis=0), rtol=0, atol=1e-14
                    )
            if step + 1 == case.overflows_at:
                continue
            for error, row in zip(errors, e + g - sent, strict=True):
                start = 0
                for key in names:
                    stop = start + error[key].numel()
                    error[key] = torch.from_numpy(row[start:stop])
                    start = stop
    for each, error in zip(found, errors, strict=True):
        assert each.errors.keys() == error.keys()
        for key, value in error.items():
            own = each.errors[key]
            torch.testing.assert_close(own, value, rtol=0, atol=1e-14)
    largest = [float(error.abs().max()) for error in found[0].errors.values()]
    assert max(largest) > 1e-6


def test_buckets_are_made_anew_after_the_first_step(workers: Any) -> None:
    """Else the tests above would not show that errors follow their parameters."""
    first, second, *rest = workers[0]["cases"]["4 bits"].buckets
    assert first != second
    assert len(second) > 1
    for names in second:
        assert len(names) > 1
    for each in rest:
        assert each == second
    resumed = workers[0]["cases"]["resumed"].buckets
    assert resumed[2] != resumed[3]
    assert resumed[3] != resumed[4]


@pytest.mark.parametrize("name", CASES)
def test_what_is_sent_is_counted(workers: Any, name: str) -> None:
    case = CASES[name]
    starts = (
        [0, case.resumed_after, NUM_STEPS] if case.resumed_after else [0, NUM_STEPS]
    )
    num_workers = len(workers)
    for worker in workers:
        found: Found = worker["cases"][name]
        gradients = found.local[0]
        numel = sum(gradient.numel() for gradient in gradients.values())
        for number, sent in enumerate(found.sent):
            steps = found.buckets[starts[number] : starts[number + 1]]
            buckets = [names for step in steps for names in step]
            numels = [len(joined(gradients, names)) for names in buckets]
            bits = 0
            for each in numels:
                _, bits_of_one = definition(case.compressor, each)
                bits += bits_of_one
            is_gathered = case.compressor == "top-k"
            assert sent == (bits, len(buckets), bits if is_gathered else 0)
            # A ring carries an all-reduce's message 2 (n - 1) / n times, a gathered one n - 1 times.
            models_in_ring = 2 * (num_workers - 1) / num_workers
            ddp_bits = models_in_ring * 32 * numel * len(steps)
            times = (
                num_workers - 1 if is_gathered else 2 * (num_workers - 1) / num_workers
            )
            share = times * bits / ddp_bits
            assert found.shares[number] == pytest.approx(share)


@pytest.mark.parametrize("name", COMPRESSORS)
def test_on_fixed_buckets_it_is_efsgd_on_gradients(workers: Any, name: str) -> None:
    for worker in workers:
        hooked, own, num_buckets = worker["efsgd"][name]
        assert num_buckets > 1
        for ours, theirs in zip(hooked, own, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", COMPRESSORS)
def test_the_hook_returns_before_another_worker_has_come(
    workers: Any, name: str
) -> None:
    done = workers[0]["overlap"][name]
    assert len(done) > 2
    assert not any(done)


@pytest.mark.parametrize(("name", "operation"), [("top-k", "topk"), ("4 bits", "amax")])
def test_nothing_in_the_hook_makes_the_host_wait_for_a_gpu(
    workers: Any, name: str, operation: str
) -> None:
    for worker in workers:
        seen, waiting = worker["watched"][name]
        assert operation in seen
        assert "where" in seen
        assert not waiting


REFUSALS = {
    "not in DDP": "ValueError: error_feedback_hook: the model must be in DistributedDataParallel",
    "unused": "ValueError: error_feedback_hook: what is sent of a parameter that no worker has used",
    "compressor": "ValueError: error_feedback_hook: the compressor must be TopK or QuantisedBlocks",
    "ratio": "ValueError: error_feedback_hook: top_k at ratio 1000000.0 keeps no coordinate",
    "complex": "ValueError: error_feedback_hook: weight is torch.complex64, and only real numbers",
    "fp16": "ValueError: error_feedback_hook: 0.weight is torch.float16, which needs loss scaling",
    "fp16 autocast": "RuntimeError: error_feedback_hook: autocast is in torch.float16, which needs",
    "fp16 autocast inside": "RuntimeError: error_feedback_hook: autocast is in torch.float16, which",
    "workers differ": "(compressor = TopK(ratio=6) on rank 0; compressor = TopK(ratio=7) on rank 1",
    "another number": "ValueError: this state does not fit error_feedback_hook: it is one of ",
    "another rank": "ValueError: this state does not fit error_feedback_hook: it is worker ",
    "another compressor": "saved with TopK(ratio=7), this has TopK(ratio=6)",
    "another model": "its 0.weight is of shape (2,), this model's of (4, 2, 3, 3)",
    "another DDP": "is not one of the model that the state was made for",
    "sparse": "error_feedback_hook: a gradient is sparse",
    "collective": "CollectiveError: a collective failed: worker 1 is gone",
}


@pytest.mark.parametrize("name", REFUSALS)
def test_mistakes_are_told(workers: Any, name: str) -> None:
    for worker in workers:
        assert REFUSALS[name] in worker["refusals"][name]
