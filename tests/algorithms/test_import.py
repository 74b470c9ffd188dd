"""What importing the optimisers does beside giving names."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from cser_bench import algorithms

ROOT = Path(__file__).parents[2]

SCRIPT = """
import gc
import weakref
import torch.distributed as dist
import cser_bench.algorithms
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
import torch.distributed.nn.functional
group = weakref.ref(dist.group.WORLD)
dist.destroy_process_group()
gc.collect()
assert group() is None, gc.get_referrers(group())
"""


@pytest.mark.whole
def test_a_group_ends_where_it_is_destroyed() -> None:
    """Else its threads may abort a process that has finished, whatever its optimiser is."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


NAMES = """
import sys
import cser_bench
from cser_bench import harness, report
assert "torch" not in sys.modules, "which reports do without"
from cser_bench import MCSER, ProcessGroupCollectives, __version__
assert MCSER is cser_bench.algorithms.MCSER
assert __version__ == cser_bench.algorithms.__version__
assert not hasattr(cser_bench, "MCSGD")
everything = {}
exec("from cser_bench.algorithms import *", everything)
assert everything["MCSER"] is MCSER and "harness" not in everything and "core" not in everything
"""


@pytest.mark.whole
def test_optimisers_can_be_imported_from_the_top() -> None:
    done = subprocess.run(
        [sys.executable, "-c", NAMES], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_all_are_the_names_that_the_package_gives() -> None:
    """But for the function `algorithms`, which would hide the folder."""
    text = (ROOT / "algorithms" / "__init__.py").read_text()
    tree = ast.parse(text)
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    given = {
        alias.asname
        for node in imports
        for alias in node.names
        if alias.asname == alias.name
    }
    assert set(algorithms.__all__) == given - {"algorithms", "__version__"}
