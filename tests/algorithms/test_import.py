"""What importing the optimisers does beside giving names."""

import subprocess
import sys
from pathlib import Path

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


def test_a_group_ends_where_it_is_destroyed() -> None:
    """Else its threads may abort a process that has finished, whatever its optimiser is."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
