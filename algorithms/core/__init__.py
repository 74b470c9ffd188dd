"""The pieces that methods share: flat buffers, stages, compressors, collectives. Here is what most of them import."""

from algorithms.core.compressors import Compressor, Identity, SharedSupport, Zero
from algorithms.core.layout import Layout, Windows
from algorithms.core.optimizer import DistributedOptimizer
from algorithms.core.settings import Common, require_interval
from algorithms.core.stages import Stage
from algorithms.core.topology import Topology
from algorithms.core.traffic import Purpose, Traffic

__all__ = [
    "Common",
    "Compressor",
    "DistributedOptimizer",
    "Identity",
    "Layout",
    "Purpose",
    "SharedSupport",
    "Stage",
    "Topology",
    "Traffic",
    "Windows",
    "Zero",
    "require_interval",
]
