"""Passes as CUDA graphs, on a GPU that is not there: what was captured is done again where it was, with no Python."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness.__main__ import main
from harness.records.store import read_run
from harness.train import training
from harness.train.graphs import NoGraphsError, captured, check_possible
from harness.workers.attempt import attempt_in_threads, attempt_stacked
from tests.harness.support import BLOCK, comparable, job_for, settings_of, small_config

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
WARM_UP_AND_CAPTURE = 3 + 1


class Tape(TorchDispatchMode):
    """Writes down each operation, the tensors that it was given, and those that it gave: their memory is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Sequence[Any], Mapping[str, Any], Any]] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, given))
        return given


class Graph:
    """As torch.cuda.CUDAGraph: a replay reads and writes the memory that the capture did."""

    replays = 0

    def __init__(self) -> None:
        self.tape = Tape()

    @torch.no_grad()
    def replay(self) -> None:
        Graph.replays += 1
        for func, args, kwargs, given in self.tape.calls:
            for before, now in zip(tree_leaves(given), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(before, Tensor) and before.data_ptr() != now.data_ptr():
                    before.copy_(now)


class Streams:
    """Which stream is current."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.current = self
        for name in ("current_stream", "Stream"):
            monkeypatch.setattr(torch.cuda, name, lambda device: self)
        monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: setattr(self, "current", stream))

    def wait_stream(self, other: Streams) -> None: ...


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Streams:
    """A made-up GPU, which does at once what it is told: in the CPU's memory, with the CPU's generator."""
    made = Streams(monkeypatch)

    @contextmanager
    def stream(aside: Streams) -> Iterator[None]:
        yield

    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, pool: graph.tape)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.get_rng_state())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: torch.set_rng_state(state))
    # Stacked workers of a run on the CPU are taken for those of one on a GPU.
    monkeypatch.setattr(training, "check_possible", lambda device, *known: check_possible(GPU, *known))
    monkeypatch.setattr(Graph, "replays", 0)
    return made


class Worker:
    """A model, its gradients in memory that stays, and passes that count how often Python goes through them."""

    def __init__(self, seed: int, *more: nn.Module) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), *more, nn.Linear(5, 3))
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self.calls = 0

    def __call__(self, inputs: Tensor, labels: Tensor) -> Tensor:
        self.calls += 1
        loss = nn.functional.cross_entropy(self.model(inputs), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def state(self) -> list[Tensor]:
        """Gradients and buffers, as copies."""
        gradients = [parameter.grad for parameter in self.model.parameters()]
        return [each.clone() for each in [*gradients, *self.model.buffers()] if each is not None]


def batch(seed: int, size: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 6, generator=generator), torch.randint(3, (size,), generator=generator)


def same(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


def test_graphs_give_the_losses_gradients_and_statistics_of_passes_and_go_through_no_python(streams: Streams) -> None:
    workers, eager = [Worker(seed) for seed in (1, 2)], [Worker(seed) for seed in (1, 2)]
    before = [worker.state() for worker in workers]
    addresses = [each.grad.data_ptr() for worker in workers for each in worker.model.parameters()]  # type: ignore[union-attr]
    graphs = captured(workers, [worker.model for worker in workers], [batch(1), batch(2)])
    assert all(same(worker.state(), old) for worker, old in zip(workers, before, strict=True))
    for step in range(5):
        for rank, (graph, worker, other) in enumerate(zip(graphs, workers, eager, strict=True)):
            own = batch(10 * step + rank)
            seen = worker.model[0].weight.grad._version  # type: ignore[union-attr]
            loss = graph(*own)
            assert torch.equal(loss, other(*own)) and same(worker.state(), other.state())
            assert worker.model[0].weight.grad._version > seen  # type: ignore[union-attr]
    assert [worker.calls for worker in workers] == [WARM_UP_AND_CAPTURE] * 2 and Graph.replays == 10
    assert addresses == [each.grad.data_ptr() for worker in workers for each in worker.model.parameters()]  # type: ignore[union-attr]


def test_a_batch_of_another_shape_goes_the_old_way_and_the_next_one_does_not(streams: Streams) -> None:
    worker, eager = Worker(1), Worker(1)
    (graph,) = captured([worker], [worker.model], [batch(1)])
    for seed, size in ((2, 4), (3, 3), (4, 4)):
        assert torch.equal(graph(*batch(seed, size)), eager(*batch(seed, size)))
        assert same(worker.state(), eager.state())
    assert worker.calls == WARM_UP_AND_CAPTURE + 1 and Graph.replays == 2


def test_a_network_that_draws_random_numbers_is_left_as_it_is(streams: Streams) -> None:
    worker = Worker(1, nn.Dropout(0.5))
    before, drawn = worker.state(), torch.get_rng_state()
    with pytest.raises(NoGraphsError, match="draws random numbers, as dropout does"):
        captured([worker], [worker.model], [batch(1)])
    assert same(worker.state(), before) and torch.equal(torch.get_rng_state(), drawn)


@contextmanager
def _refusing(graph: Graph, pool: object) -> Iterator[None]:
    """As where the end of a capture fails: torch leaves the stream that it captured on."""
    yield
    torch.cuda.set_stream("of the capture")  # type: ignore[arg-type]
    raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nCompile with ...")


def test_a_capture_that_fails_is_one_sentence_and_leaves_everything_as_it_was(
    streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "graph", _refusing)
    worker = Worker(1)
    before = worker.state()
    with pytest.raises(NoGraphsError) as caught:
        captured([worker], [worker.model], [batch(1)])
    assert str(caught.value) == "a capture failed (CUDA error: operation not permitted when stream is capturing)"
    assert streams.current is streams and same(worker.state(), before)


@pytest.mark.parametrize(("known", "words"), [
    ((CPU, True, False, False, False), "torch has no GPU here"),
    ((GPU, False, False, True, False), "in fp16 each worker has a loss scale"),
    ((GPU, False, False, False, False), "workers are not stacked"),
    ((GPU, True, True, False, False), "all workers' passes are one already"),
    ((GPU, True, False, False, True), "sentences vary in length"),
])  # fmt: skip
def test_what_is_known_beforehand_is_one_sentence(known: tuple[Any, ...], words: str) -> None:
    check_possible(GPU, True, False, False, False)
    with pytest.raises(NoGraphsError, match=words):
        check_possible(*known)


# Whole runs


@pytest.mark.parametrize("name", ["mcser", "sgd_accumulate", "powersgd"])
def test_a_run_with_graphs_is_the_run_without_to_the_bit_stopped_or_not(
    name: str, streams: Streams, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_config(name, settings_of(name, BLOCK))
    plain = job_for(config, tmp_path / "plain")
    graphed = job_for(config, tmp_path / "graphs", cuda_graphs=True)
    assert attempt_stacked(plain) and Graph.replays == 0
    asked = iter(range(32))
    assert not attempt_stacked(graphed, lambda: next(asked, None) is None)
    assert attempt_stacked(job_for(config, tmp_path / "graphs", cuda_graphs=True))
    assert [each.resumed_from_step for each in read_run(graphed.folder).run.attempts] == [0, 33]
    assert Graph.replays == 40 * 2 and "CUDA graphs" not in capsys.readouterr().out
    assert comparable(graphed.folder) == comparable(plain.folder)


@pytest.mark.parametrize("attempt", [attempt_stacked, attempt_in_threads])
def test_a_run_that_can_have_none_says_so_once_and_is_the_same(
    attempt: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_config()
    job, plain = job_for(config, tmp_path / "graphs", cuda_graphs=True), job_for(config, tmp_path / "plain")
    assert attempt(job)
    assert capsys.readouterr().out == "no CUDA graphs: torch has no GPU here\n"
    assert attempt(plain) and not capsys.readouterr().out
    assert comparable(job.folder) == comparable(plain.folder)


@pytest.mark.parametrize("words", [["--workers", "stacked"], ["--device", "cuda"]])
def test_graphs_of_what_is_not_stacked_on_a_gpu_are_refused(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "fashion_mnist_small", "--cuda-graphs", *words, "--results", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: --cuda-graphs is for --workers stacked on a GPU; ") and said.count("\n") == 1
