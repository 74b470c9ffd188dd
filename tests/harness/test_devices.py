"""GPUs: who has which, too few of them, the same one twice, and tensors that a GPU would refuse."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from algorithms import ProcessGroupCollectives, SoloCollectives
from algorithms.core.checks import FirstStep
from algorithms.registry import algorithms
from harness.__main__ import main
from harness.spec import SpecError
from harness.train.build import build_optimizer
from harness.workers import process_group
from harness.workers.process_group import choose_workers, device_groups, joined, own_gpu
from tests.harness.support import Table, settings_of, small_config, small_spec, write_spec


@pytest.mark.parametrize(
    ("given", "groups"),
    [
        (("cuda", 4, 4), [("cuda:0", "cuda:1", "cuda:2", "cuda:3")]),
        (("cuda", 2, 5), [("cuda:0", "cuda:1"), ("cuda:2", "cuda:3")]),  # runs at once have GPUs of their own
        (("cuda", 1, 3), [("cuda:0",), ("cuda:1",), ("cuda:2",)]),
        (("cpu", 3, 0), [("cpu", "cpu", "cpu")]),
    ],
)
def test_each_local_rank_has_the_gpu_of_its_number(given: tuple[str, int, int], groups: list[tuple[str, ...]]) -> None:
    assert device_groups(*given) == groups


@pytest.mark.parametrize(
    ("device", "num_processes", "num_gpus", "parts"),
    [
        ("cuda", 1, 0, ["no GPUs", "--device cpu"]),
        ("cuda", 8, 4, ["8 processes", "4", "--workers stacked"]),
    ],
)
def test_too_few_gpus_are_refused_with_a_remedy(
    device: str, num_processes: int, num_gpus: int, parts: list[str]
) -> None:
    with pytest.raises(SpecError) as caught:
        device_groups(device, num_processes, num_gpus)
    assert not [part for part in parts if part not in str(caught.value)]


@pytest.mark.parametrize(("num_gpus", "gpus"), [
    (4, ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]),  # each sees all of its host
    (1, ["cuda:0"] * 4),  # each sees its own alone, as with Slurm's --gpus-per-task
    (2, ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]),  # too few, which `joined` refuses
    (0, ["cuda:0"] * 4),
])  # fmt: skip
def test_what_a_process_of_another_launcher_has(num_gpus: int, gpus: list[str]) -> None:
    assert [own_gpu(local_rank, num_gpus) for local_rank in range(4)] == gpus


def test_auto_is_processes_where_there_is_a_gpu_for_each_worker() -> None:
    machines = [("cuda", 8, 8), ("cuda", 8, 7), ("cpu", 1, 8)]
    chosen = [choose_workers("auto", *machine) for machine in machines]
    assert chosen == ["processes", "stacked", "stacked"]
    assert choose_workers("processes", "cuda", 8, 1) == "processes"


def join(rank: int, init_method: str, own: str) -> str:
    """As one of two processes, with this for a device: what joining the group came to."""
    process_group.identity = lambda device: own
    try:
        with joined("cpu", 60.0, init_method, rank, 2):
            dist.barrier()  # One that went at once would close what the other is still connecting.
            return f"rank {ProcessGroupCollectives().rank}"
    except SpecError as error:
        return str(error)


@pytest.mark.parametrize("same", [False, True])
def test_ranks_of_a_group_tell_each_other_what_they_have(same: bool, tmp_path: Path) -> None:
    init = f"file://{tmp_path}/rendezvous"
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        ranks = [pool.submit(join, rank, init, "GPU a of x" if same else f"GPU {rank} of x") for rank in range(2)]
        ends = [rank.result() for rank in ranks]
    if same:
        assert all(end.startswith("ranks 0 and 1 both have GPU a of x, ") for end in ends)
    else:
        assert ends == ["rank 0", "rank 1"]


needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


@needs_no_gpu
def test_a_run_without_the_gpus_it_needs_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, results = write_spec(tmp_path, small_spec()), tmp_path / "results"
    assert main(["run", str(path), "--results", str(results), "--device", "cuda"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --device cuda: torch sees no GPUs") and error.count("\n") == 1
    assert not results.exists()


@needs_no_gpu
def test_a_preflight_without_gpus_says_so_line_by_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_spec(tmp_path, small_spec())
    assert main(["preflight", str(path), "--results", str(tmp_path), "--device", "cuda"]) == 1
    lines = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert lines == ["ok   data", "ok   disk", "FAIL GPUs", "FAIL GPUs suffice"]


# Where there is no GPU, tensors without memory stand for its own: many operations mix neither with a CPU's.


SHARED: Table = {"kind": "block", "ratio": 4}
GATHERED: Table = {"kind": "top_k", "ratio": 4}
PAIRS = [(name, table) for name in algorithms() for table in (SHARED, GATHERED)[: 1 if "released" in name else 2]]


@pytest.mark.parametrize(("name", "compressor"), PAIRS)
def test_a_step_mixes_no_devices(name: str, compressor: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FirstStep, "check", lambda *_: False)  # which refuses a model on meta
    config = small_config(name, settings_of(name, compressor))
    shapes = [(8, 4), (3, 2, 2), (9,)]
    parameters = nn.ParameterList(nn.Parameter(torch.zeros(shape, device="meta")) for shape in shapes)
    optimizer = build_optimizer(config, parameters, SoloCollectives(), 40)
    for _ in range(3):
        optimizer.zero_grad()
        optimizer.step()
    assert optimizer.flat.parameters.is_meta and optimizer.num_steps == 3


class OnMeta(ProcessGroupCollectives):
    """A backend that takes tensors of the meta device alone, and so cannot give them back to a CPU."""

    def __init__(self) -> None:
        self.rank, self.world_size, self.group = 0, 2, None
        self.device = torch.device("meta")
        self.seen: list[torch.Tensor] = []


@pytest.mark.parametrize("name", ["all_reduce", "broadcast", "all_gather"])
def test_tensors_go_to_the_backends_device_and_come_back(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    collectives = OnMeta()

    def backend(*tensors: Any, **options: Any) -> None:
        collectives.seen += [each for each in tensors if isinstance(each, torch.Tensor)]

    monkeypatch.setattr("torch.distributed.all_reduce", backend)
    monkeypatch.setattr("torch.distributed.broadcast", backend)
    monkeypatch.setattr("algorithms.core.process_group._all_gather", backend)
    send = {
        "all_reduce": collectives._sum_,
        "broadcast": collectives._broadcast_,
        "all_gather": collectives._gather,
    }[name]
    with pytest.raises(RuntimeError, match="Cannot copy out of meta tensor"):
        send(torch.ones(3))
    assert collectives.seen and all(each.is_meta for each in collectives.seen)
    send(torch.ones(3, device="meta"))  # Nothing needs to come back.
