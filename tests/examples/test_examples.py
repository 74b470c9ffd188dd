"""The examples as they stand: equal at the consensus, learning, the same once resumed. Torchrun starts
one of them."""

import importlib.util
import json
import math
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.optim.lr_scheduler import ConstantLR

from cser_bench.algorithms import (
    SGD,
    Collectives,
    SoloCollectives,
    consensus_checkpoint,
    load_checkpoint,
    newest_checkpoint,
)
from cser_bench.algorithms.check.threads import run_workers
from cser_bench.algorithms.core.checkpoints import METADATA

ROOT = Path(__file__).parents[2]
NUM_WORKERS = 2
LAST = {
    "plain": 7,
    "transformers_trainer": 7,
    "lightning_trainer": 8,
    "timm_ema": 7,
    "nanogpt": 5,
}
"""Which `consensus()` of each example is its last evaluation; of nanoGPT's two methods, the first
one's."""
SHARDED = "fsdp2_compressed_gradients"
"""The example that has none of our optimisers."""
HOOK = "ddp_hook"
"""The example that keeps DDP, and so has no `consensus()`."""
OWN_METHOD = "growing_local_sgd"
"""The example that is no script, which tests/harness/test_own_methods.py tries."""
LIKE = {
    "like_nanogpt": 8,
    "like_torchvision": 8,
    "like_accelerate": 5,
    "like_fabric": 5,
}
"""The same of the scripts here that the guide's differences change."""
NEEDS = {
    "transformers_trainer": "accelerate",
    "lightning_trainer": "lightning",
    "timm_ema": "timm",
    "like_accelerate": "accelerate",
    "like_fabric": "lightning",
}


def environment() -> dict[str, str]:
    """What all workers have in theirs."""
    here = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    return os.environ | here


class Launcher:
    """Starts two workers of a script, one script after another; see forking.py."""

    def __init__(self) -> None:
        words = [sys.executable, str(ROOT / "tests/examples/forking.py")]
        pipe = subprocess.PIPE
        self._server = subprocess.Popen(
            words, env=environment(), stdin=pipe, stdout=pipe, text=True
        )

    def __call__(
        self, folder: Path, script: str, *arguments: object
    ) -> tuple[str, list[int]]:
        """What a script of these tests' printed, and the workers' exit statuses."""
        assert self._server.stdin
        assert self._server.stdout
        output = folder / "output"
        output.write_text("")
        words = [str(ROOT / "tests/examples" / script), *map(str, arguments)]
        request = {"folder": str(folder), "words": words, "output": str(output)}
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        statuses = json.loads(self._server.stdout.readline())
        return output.read_text(), statuses

    def end(self) -> None:
        self._server.communicate()
        assert self._server.returncode == 0


@pytest.fixture(scope="module")
def launch() -> Iterator[Launcher]:
    launcher = Launcher()
    yield launcher
    launcher.end()


def logged(log: Path) -> list[list[dict[str, Any]]]:
    """What each rank wrote."""
    lines = [
        Path(f"{log}-{rank}.jsonl").read_text().splitlines()
        for rank in range(NUM_WORKERS)
    ]
    return [[json.loads(each) for each in rank] for rank in lines]


def start(
    launch: Launcher, script: Path, folder: Path, attempt: int, killed_after: int
) -> tuple[str, list[int], list[list[dict[str, Any]]]]:
    """What a script printed, its exit statuses, and what each rank saw at each `consensus()`."""
    log = folder / f"attempt-{attempt}"
    said, statuses = launch(
        folder, "watched.py", log, killed_after, script, folder / "saved"
    )
    return said, statuses, logged(log)


def losses(said: str) -> list[float]:
    """Those that were evaluated, which are printed as `loss 0.25` or `'eval_loss': '0.25'`."""
    return [
        float(number)
        for number in re.findall(
            r"\b(?:eval_)?loss(?: |': ')(\d+\.\d+)(?!.*learning_rate)", said
        )
    ]


@pytest.mark.whole
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [*LAST, *LIKE])
def test_an_example_or_a_script_changed_as_the_guide_has_it(
    name: str, tmp_path: Path, launch: Launcher
) -> None:
    """Rank 1 kills itself after the last evaluation, before that is saved; then the same command
    goes on."""
    if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None:
        pytest.skip(f"{NEEDS[name]} is not installed: pip install -e '.[examples]'")
    script = changed(name, tmp_path) if name in LIKE else ROOT / f"examples/{name}.py"
    last_evaluation = (LAST | LIKE)[name]
    said, statuses, whole = start(launch, script, tmp_path, 1, last_evaluation)
    assert statuses[1] == -signal.SIGKILL, said
    said_then, statuses, resumed = start(launch, script, tmp_path, 2, 0)
    assert statuses == [0, 0], said_then
    for first, second in (whole, resumed):
        assert [seen["inside"] for seen in first] == [seen["inside"] for seen in second]
    for uninterrupted, went_on in zip(whole, resumed, strict=True):
        assert len(uninterrupted) == last_evaluation
        steps = sorted({seen["step"] for seen in uninterrupted})
        assert went_on[0]["step"] >= steps[-2] > 0, "it began anew"
        # nanoGPT had a batch fetched ahead, so that its next steps are others.
        alike = steps[-2] if name == "like_nanogpt" else steps[-1]
        seen_then = next(seen for seen in went_on if seen["step"] == alike)
        assert seen_then in uninterrupted
    assert whole[0][-1]["own"] != whole[1][-1]["own"]
    before, *_, last = losses(said)
    assert last < before - 0.02
    assert last in losses(said_then) or name == "like_nanogpt"
    if name == "like_fabric":
        # A scheduler looks at this loss: all workers must have the same.
        assert all(count % NUM_WORKERS == 0 for count in Counter(losses(said)).values())
    if name == "lightning_trainer":
        # In each worker's own weights the tested loss would be another one.
        [tested] = re.findall(r"best: test loss (\d+\.\d+)", said_then)
        assert float(tested) == min(losses(said))


@pytest.mark.whole
@pytest.mark.timeout(900)
@pytest.mark.skipif(
    not hasattr(FSDPModule, "set_custom_reduce_scatter"),
    reason="an older FSDP2 has no such hook",
)
def test_gradients_of_fsdp2_are_compressed(tmp_path: Path, launch: Launcher) -> None:
    """What is applied is the mean, less what the rounding loses, which fed back is nothing in the
    long run."""
    script = ROOT / f"examples/{SHARDED}.py"
    said, statuses = launch(
        tmp_path, "watched_reduce_scatter.py", tmp_path / "log", script
    )
    assert statuses == [0, 0], said
    slices = [
        (20 * 512 + 512) / 2,
        (6 * 512 + 6) / 2,
    ]  # of 5 rows FSDP makes 6, which 2 ranks can share
    for rank in logged(tmp_path / "log"):
        seen = [
            (each["bits"], each["is_fed_back"], each["payload_bits"]) for each in rank
        ]
        assert seen == [
            (
                bits,
                is_fed_back,
                60 * NUM_WORKERS * math.ceil(numel / 256) * (32 + 256 * bits),
            )
            for bits, is_fed_back in ((4, False), (1, False), (1, True))
            for numel in slices
        ]
        for each in rank:
            assert each["lost"] < 1e-5 if each["is_fed_back"] else each["lost"] > 1e-3
    whole, four_bits, one_bit, fed_back = losses(said)
    assert whole < 0.4
    assert abs(four_bits - whole) < 0.01
    assert abs(fed_back - whole) < abs(one_bit - whole)


@pytest.mark.whole
@pytest.mark.timeout(900)
def test_ddp_with_the_hook_ends_with_what_its_docstring_shows_and_goes_on(
    tmp_path: Path, launch: Launcher
) -> None:
    """It goes on from the last epoch that both workers saved.

    Not to the bit: DDP orders its bucket anew after the first step, and 4 bits are by blocks of it.
    """
    script = ROOT / f"examples/{HOOK}.py"
    saved = tmp_path / "saved"
    words = ("watched.py", tmp_path / "log", 0, script, saved)
    said, statuses = launch(tmp_path, *words)
    assert statuses == [0, 0], said
    shown = [line[4:] for line in script.read_text().splitlines()[6:9]]
    *_, scores, sent, by_ddp = said.splitlines()
    assert [sent, by_ddp] == shown[1:]
    [accuracy] = re.findall(r"accuracy (\d\.\d{3})$", scores)
    assert float(accuracy) == pytest.approx(float(shown[0][-5:]), abs=0.05)
    # The network has 1,797 numbers, half of them a worker's to average. A half is 4 blocks
    # of 256 codes of 4 bits and a scale in fp32: it goes out once, and its mean comes back.
    num_sent = 4 * 63 * 2 * 4 * (256 // 2 + 4)
    assert sent == f"each worker sent:    {num_sent:,} bytes in {4 * 63} steps"
    states = [
        torch.load(saved / "epoch-4" / f"{rank}.pt") for rank in range(NUM_WORKERS)
    ]
    (saved / "epoch-3" / "1.pt").unlink()
    shutil.rmtree(saved / "epoch-4")
    said_then, statuses = launch(tmp_path, *words)
    assert statuses == [0, 0], said_then
    went_on = [line for line in said_then.splitlines() if "epoch" in line]
    before = said.splitlines()[2:4]
    assert [line.partition(":")[0] for line in went_on] == ["epoch 3", "epoch 4"]
    for line, line_before in zip(went_on, before, strict=True):
        [loss, loss_before] = [
            float(re.findall(r"loss (\d\.\d{4})", each)[0])
            for each in (line, line_before)
        ]
        assert loss == pytest.approx(loss_before, abs=0.005)
    weights = [state["model"]["0.weight"] for state in states]
    errors = [state["hook"]["errors"]["0.weight"] for state in states]
    assert torch.equal(*weights)
    assert not torch.equal(*errors)


@pytest.mark.whole
def test_the_plain_loop_by_torchrun_ends_with_what_its_docstring_shows(
    tmp_path: Path,
) -> None:
    """Scores are other ones on other processors; what is sent is the same everywhere."""
    script = ROOT / "examples/plain.py"
    launcher = [
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={NUM_WORKERS}",
    ]
    done = subprocess.run(
        [sys.executable, "-m", *launcher, str(script)],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    shown = [line[4:] for line in script.read_text().splitlines()[6:9]]
    *_, scores, sent, by_ddp = done.stdout.splitlines()
    assert [sent, by_ddp] == shown[1:]
    assert scores.partition("loss")[0] == shown[0].partition("loss")[0]
    [accuracy] = re.findall(r"accuracy (\d\.\d{3})$", scores)
    assert float(accuracy) == pytest.approx(float(shown[0][-5:]), abs=0.05)
    # A linear layer of 20 to 64, batch normalisation, and one of 64 to 5; of 4,000 samples a
    # worker has half, in batches of 32 and a smaller last one.
    num_parameters = 20 * 64 + 64 + 2 * 64 + 64 * 5 + 5
    num_steps = 4 * 63
    # Each number in fp32, and its place
    num_sent = num_steps * (num_parameters // 192) * (4 + 4)
    # Two workers' rings carry a message once
    num_by_ddp = num_steps * num_parameters * 4
    assert sent == f"each worker sent:    {num_sent:,} bytes in {num_steps} steps"
    assert by_ddp.startswith(f"DDP would have sent: {num_by_ddp:,} bytes in fp32, ")
    assert by_ddp.endswith(f" {num_by_ddp / num_sent:.1f} times as much")


def test_the_page_on_examples_has_each_with_its_command() -> None:
    page = (ROOT / "examples" / "README.md").read_text()
    rows = re.findall(
        r"^\| \[(\w+\.py)\]\(\1\) \|.*? \| `(.*?)` \|", page, re.MULTILINE
    )
    assert {name for name, _ in rows} == {
        path.name for path in (ROOT / "examples").glob("*.py")
    }
    assert all(command.endswith(f"examples/{name}") for name, command in rows)


def test_each_example_is_tried() -> None:
    files = sorted((ROOT / "examples").glob("*.py"))
    assert {path.stem for path in files} == LAST.keys() | {SHARDED, HOOK, OWN_METHOD}


GUIDE = ROOT / "docs" / "in-your-own-script.md"
FRAMEWORKS = ROOT / "docs" / "frameworks.md"
DIFFERENCES = {
    "like_nanogpt": "nanogpt",
    "like_torchvision": "torchvision",
    "timm_ema": "timm",
    "like_accelerate": "accelerate",
    "transformers_trainer": "transformers",
    "lightning_trainer": "lightning",
    "like_fabric": "fabric",
}
"""Which framework's section has the difference of each script."""


def framework_sections() -> dict[str, str]:
    """The page's sections by their anchors."""
    _, *sections = FRAMEWORKS.read_text().split("\n## ")
    return {section.partition("\n")[0].lower(): section for section in sections}


def difference(name: str) -> list[str]:
    """The lines of the difference on a framework's page."""
    section = framework_sections()[DIFFERENCES[name]]
    [shown] = re.findall("```diff\n(.*?)```", section, flags=re.DOTALL)
    return str(shown).splitlines()


def test_each_frameworks_page_is_in_the_guides_table() -> None:
    linked = re.findall(
        r"^\| \[\w+\]\(frameworks\.md#(\w+)\)", GUIDE.read_text(), re.MULTILINE
    )
    assert linked == list(DIFFERENCES.values()) == list(framework_sections())


def test_the_guide_counts_the_lines_of_its_differences() -> None:
    """In the table are those that were added to a framework's own script."""
    rows = re.findall(
        r"^\| \[(\w+)\].*? \| (\d+) \|", GUIDE.read_text(), flags=re.MULTILINE
    )
    counted = {
        f"like_{framework.lower()}": int(num_lines) for framework, num_lines in rows
    }
    for name in LIKE:
        added = [line for line in difference(name) if line.startswith("+")]
        assert counted[name] == len(added), name


def changed(name: str, folder: Path) -> Path:
    """A script here with the guide's difference in it, each of whose parts fits one place."""
    script = "\n" + (ROOT / f"tests/examples/{name}.py").read_text()
    for part in "\n".join(difference(name)).split("\n...\n"):
        lines = part.splitlines()
        before = "".join(f"{line[1:]}\n" for line in lines if line[0] in " -")
        after = "".join(f"{line[1:]}\n" for line in lines if line[0] in " +")
        assert script.count(f"\n{before}") == 1, before
        script = script.replace(f"\n{before}", f"\n{after}")
    path = folder / "train.py"
    path.write_text(script)
    return path


def test_nanogpts_own_checkpoint_has_what_its_sampling_and_resuming_read(
    tmp_path: Path,
) -> None:
    page = framework_sections()["nanogpt"]
    [line] = re.findall(r"^    (optimizer\.consensus.*)$", page, re.MULTILINE)
    model = nn.Linear(2, 2)
    numbers: dict[str, Any] = {"iter_num": 4, "best_val_loss": 0.5}
    kept = {
        "model_args": {"n_layer": 2},
        "config": {"dataset": "openwebtext"},
        **numbers,
    }
    names = {
        "os": os,
        "torch": torch,
        "raw_model": model,
        "out_dir": str(tmp_path),
        **kept,
    }
    names["optimizer"] = SGD(model.parameters(), lr=0.1, collectives=SoloCollectives())
    exec(line, names | {"master_process": False})
    assert not (tmp_path / "ckpt.pt").exists()
    exec(line, names | {"master_process": True})
    saved = torch.load(tmp_path / "ckpt.pt", weights_only=True)
    assert torch.equal(saved.pop("model")["weight"], model.weight)
    assert saved == kept


@pytest.mark.parametrize("name", [name for name in DIFFERENCES if name not in LIKE])
def test_the_guides_differences_are_lines_of_the_examples(name: str) -> None:
    """In their order."""
    lines = iter((ROOT / f"examples/{name}.py").read_text().splitlines())
    kept = [
        line for line in difference(name) if not line.startswith("-") and line != "..."
    ]
    assert kept
    assert [line for line in kept if line[1:] not in lines] == []


@pytest.mark.parametrize("name", ["EMAWeightAveraging", "StochasticWeightAveraging"])
def test_lightnings_averages_of_each_workers_own_are_refused(name: str) -> None:
    callbacks = pytest.importorskip("lightning.pytorch.callbacks")
    if not hasattr(callbacks, name):
        pytest.skip(f"this Lightning has no {name}")
    definitions, _, _ = (
        (ROOT / "examples/lightning_trainer.py").read_text().partition("\ninputs = ")
    )
    names: dict[str, Any] = {"__name__": "example"}
    exec(definitions, names)
    settings = {"swa_lrs": 0.1} if name.startswith("Stochastic") else {}
    trainer = SimpleNamespace(callbacks=[getattr(callbacks, name)(**settings)])
    with pytest.raises(
        ValueError, match=rf"{name} would validate and keep each worker's own"
    ):
        names["ConsensusStrategy"]().setup_optimizers(trainer)


def test_readme_shows_what_the_plain_loop_ends_with() -> None:
    """Held to the script's docstring, which another test holds to what it prints."""
    ends = (ROOT / "examples/plain.py").read_text().splitlines()[6:9]
    assert ends[0].startswith("    epoch 4: ")
    assert "\n".join(ends) in (ROOT / "README.md").read_text()


def test_readme_quotes_the_plain_loop() -> None:
    """What is left of its difference is in that script, line by line and in that order."""
    shown = (
        (ROOT / "README.md")
        .read_text()
        .split("```diff\n")[1]
        .split("```")[0]
        .splitlines()
    )
    lines = iter((ROOT / "examples/plain.py").read_text().splitlines())
    assert [
        line for line in shown if not line.startswith("-") and line[1:] not in lines
    ] == []


def test_what_is_not_whole_is_no_checkpoint(tmp_path: Path) -> None:
    """A run ended before all workers had written, or while an old checkpoint was written anew."""
    model = nn.Linear(2, 2)
    optimizer = SGD(model.parameters(), lr=0.1)
    assert newest_checkpoint(tmp_path / "none") is None
    for step in (9, 10, 11):
        consensus_checkpoint(tmp_path / f"step-{step}", model, optimizer, step=step)
    (tmp_path / "step-11" / METADATA).unlink()
    newest = newest_checkpoint(tmp_path)
    assert newest == tmp_path / "step-10"
    assert load_checkpoint(newest, model, optimizer) == {"step": 10}
    with pytest.raises(
        FileNotFoundError, match="step-11 is no checkpoint, or not whole"
    ):
        load_checkpoint(tmp_path / "step-11", model, optimizer)
    with pytest.raises(ValueError, match=r"holds no 'schedule', but \['step'\]"):
        load_checkpoint(newest, model, optimizer, schedule=ConstantLR(optimizer))
    with pytest.raises(
        ValueError, match=r"rank 0 cannot write or read .*Missing key .*model.0.weight"
    ):
        load_checkpoint(newest, nn.Sequential(model), optimizer)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"rank 0 cannot write the checkpoint .*file"):
        consensus_checkpoint(tmp_path / "file" / "step-12", model, optimizer)


def test_a_checkpoint_puts_random_generators_back_and_gives_its_model_without_an_optimiser(
    tmp_path: Path,
) -> None:
    draws = [random.random, np.random.random, lambda: torch.rand(1).item()]
    model = nn.Linear(2, 2)
    other = nn.Linear(2, 2)
    optimizer = SGD(model.parameters(), lr=0.1)
    consensus_checkpoint(tmp_path / "step-1", model, optimizer, step=1)
    drawn = [draw() for draw in draws]
    assert load_checkpoint(tmp_path / "step-1", model, optimizer) == {"step": 1}
    assert [draw() for draw in draws] == drawn
    assert load_checkpoint(tmp_path / "step-1", other) == {"step": 1}
    assert torch.equal(other.weight, model.weight)
    assert [draw() for draw in draws] != drawn


@pytest.mark.whole
def test_a_worker_that_cannot_write_its_checkpoint_stops_all_of_them(
    tmp_path: Path,
) -> None:
    """At once, each by an error: none waits for one that has raised."""

    def train(collectives: Collectives) -> str:
        model = nn.Linear(2, 2)
        optimizer = SGD(model.parameters(), lr=0.1, collectives=collectives)
        # A lambda cannot be pickled.
        value: object = (lambda: None) if collectives.rank == 1 else 3
        try:
            consensus_checkpoint(tmp_path / "step-1", model, optimizer, value=value)
        except (OSError, AttributeError, pickle.PicklingError) as error:
            return type(error).__name__
        return "saved"

    ended = run_workers(train, 2)
    assert ended[0] == "OSError"
    assert ended[1] != "saved"
    assert newest_checkpoint(tmp_path) is None
