"""The pieces that methods share: flat buffers, stages, compressors, collectives. Here is what most of them import."""

from algorithms.core.compressors import Compressor as Compressor
from algorithms.core.compressors import Identity as Identity
from algorithms.core.compressors import SharedSupport as SharedSupport
from algorithms.core.compressors import Zero as Zero
from algorithms.core.layout import Layout as Layout
from algorithms.core.layout import Windows as Windows
from algorithms.core.optimizer import DistributedOptimizer as DistributedOptimizer
from algorithms.core.settings import Count as Count
from algorithms.core.settings import fixed as fixed
from algorithms.core.stages import Stage as Stage
from algorithms.core.traffic import Purpose as Purpose
from algorithms.core.traffic import Traffic as Traffic
