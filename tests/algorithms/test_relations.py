"""What docs/algorithms.md says of which method another is: each line of its table, and SGD without compression."""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import algorithms as package
from algorithms import Compressor, algorithms
from tests.algorithms.problems import COMPRESSORS, NAMES, named_compressors, own_settings, plain_sgd, switches, trained

DOCUMENT = Path(__file__).parents[2] / "docs" / "algorithms.md"
HEADING = "## Which setting of which method is which other method"
NO_COMPRESSION = "no compression"
RUN, NUM_WORKERS = 12, 4
SOME = ("block", "random_k", "top_k")
IN_WORDS: dict[str, dict[str, Any]] = {
    "`sync_interval` beyond the run's end": {"sync_interval": RUN + 1},
    "`group_size` = all workers": {"group_size": NUM_WORKERS},
}
"""Settings that the table says in words."""


@dataclass(frozen=True)
class Line:
    """A method with some settings, to be trained as another is: to the bit, or else up to rounding."""

    method: str
    setting: str
    other: str
    to_the_bit: bool

    def fixed(self) -> dict[str, Any]:
        """The settings that the line gives."""
        if self.setting == NO_COMPRESSION:
            return dict(algorithms()[self.method].no_compression or {})
        found = switches(self.method) if "all switches off" in self.setting else {}
        for words, own in IN_WORDS.items():
            found |= own if words in self.setting else {}
        return found | evaluated(self.setting)


def evaluated(cell: str) -> dict[str, Any]:
    """The values of all `key = value` in a cell of the table."""
    spans = [span for span in re.findall("`([^`]*)`", cell) if " = " in span]
    return dict(pair for span in spans for pair in eval(f"dict({span})", vars(package).copy()).items())


def lines() -> Iterator[Line]:
    section = DOCUMENT.read_text().split(HEADING)[1].split("\n## ")[0]
    to_the_bit, up_to_rounding = section.split("Up to rounding:")
    for text, exact in ((to_the_bit, True), (up_to_rounding, False)):
        for methods, setting, other in re.findall(r"^\| (`.*`) \| (.*) \| (.*) \|$", text, flags=re.MULTILINE):
            for method in re.findall(r"`(\w+)`", methods):
                yield Line(method, setting, other, exact)
    for name in NAMES:
        if algorithms()[name].no_compression and name != "ef21_sgdm":  # which has a line of its own
            yield Line(name, NO_COMPRESSION, "`sgd`", to_the_bit=False)


def rest_of(line: Line) -> list[dict[str, Any]]:
    """Settings that the line leaves open, at some values."""
    name, fixed = line.method, line.fixed()
    is_open = any(isinstance(value, Compressor) and key not in fixed for key, value in own_settings(name).items())
    tried: dict[str, Compressor] = {key: COMPRESSORS[key] for key in (*SOME, "per_tensor", "chunks")}
    if "one worker" in line.setting:
        tried = COMPRESSORS
    elif "but for what compressors draw" in line.other:
        tried = {key: COMPRESSORS[key] for key in ("top_k", "sign")}
    keys = named_compressors(name, tried) if is_open else ["identity"]
    both = "explicit_error" in switches(name) and not line.to_the_bit
    forms = [{"explicit_error": held} for held in (False, True)] if both else [{}]
    return [
        own_settings(name, [COMPRESSORS[key], COMPRESSORS["block"]], interval, **form)
        for key, interval, form in itertools.product(keys, (2, 4), forms)
    ]


def result(name: str, given: dict[str, Any], num_workers: int, dtype: torch.dtype) -> list[Tensor]:
    """Each worker's parameters, of a method that is given what it takes of these."""
    own = {key: value for key, value in given.items() if key in algorithms()[name].declared}
    common = {"momentum": given["momentum"]} if "momentum" in given else {}
    return trained(name, own, num_workers, RUN, dtype, seed=5, **common)


def expected(line: Line, rest: dict[str, Any], num_workers: int, dtype: torch.dtype) -> list[Tensor]:
    if line.other.startswith("`torch.optim.SGD`"):
        return [plain_sgd(line.method, num_workers, RUN)] * num_workers
    (other,) = re.findall(r"^`(\w+)`", line.other)
    interval = {"sync_interval": rest["reset_interval"]} if "reset_interval" in rest else {}
    return result(other, interval | rest | evaluated(line.other), num_workers, dtype)


BY_DEFINITION = {
    ("sgd_accumulate", "batches of b"),
    ("cser_pl", "`error_compressor = RandomK(ratio=1/p), reset_interval = 1`"),
    ("ef21_sgdm", "`momentum = 0`"),
}
"""Lines whose other side is no method of ours: test_definitions.py holds these to a transcription of it."""
AT_THE_END = ("local_sgd", "`sync_interval` = the run's length")
LINES = list(lines())


@pytest.mark.parametrize(
    "line",
    [line for line in LINES if (line.method, line.setting) not in BY_DEFINITION],
    ids=lambda line: f"{line.method}: {line.setting}",
)
def test_one_method_is_another(line: Line) -> None:
    if (line.method, line.setting) == AT_THE_END:
        mean = torch.stack(trained("alone", {}, 3, RUN)).mean(0)
        found = trained("local_sgd", {"sync_interval": RUN}, 3, RUN)
        return torch.testing.assert_close(found, [mean] * 3, rtol=0, atol=1e-12)
    num_workers, dtype = 1 if "one worker" in line.setting else NUM_WORKERS, (torch.float64, torch.float32)
    for rest in rest_of(line):
        found = result(line.method, rest | line.fixed(), num_workers, dtype[line.to_the_bit])
        others = expected(line, rest, num_workers, dtype[line.to_the_bit])
        torch.testing.assert_close(found, others, rtol=0, atol=0 if line.to_the_bit else 1e-12)


def test_no_line_is_lost_and_each_method_has_one() -> None:
    assert {*BY_DEFINITION, AT_THE_END} <= {(line.method, line.setting) for line in LINES}
    assert all(any(f"`{name}`" in f"`{line.method}` {line.other}" for line in LINES) for name in NAMES)
