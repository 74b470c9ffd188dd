"""The pieces that methods share: flat buffers, stages, compressors, collectives.

Here is what most of them import.
"""

from cser_bench.algorithms.core.compressors import Compressor as Compressor
from cser_bench.algorithms.core.compressors import Identity as Identity
from cser_bench.algorithms.core.compressors import SharedSupport as SharedSupport
from cser_bench.algorithms.core.compressors import Zero as Zero
from cser_bench.algorithms.core.layout import Layout as Layout
from cser_bench.algorithms.core.layout import Windows as Windows
from cser_bench.algorithms.core.optimizer import (
    DistributedOptimizer as DistributedOptimizer,
)
from cser_bench.algorithms.core.replica import Replica as Replica
from cser_bench.algorithms.core.settings import Count as Count
from cser_bench.algorithms.core.settings import fixed as fixed
from cser_bench.algorithms.core.stages import Stage as Stage
from cser_bench.algorithms.core.traffic import Purpose as Purpose
from cser_bench.algorithms.core.traffic import Traffic as Traffic
