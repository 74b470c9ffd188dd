"""PyTorch optimisers that communicate, usable alone in any training script."""

from typing import TYPE_CHECKING, Any

from algorithms.core.collectives import CollectiveError, Collectives, SoloCollectives
from algorithms.core.compressors import (
    QSGD,
    BlockSparsifier,
    Compressor,
    Identity,
    PerTensorBlockSparsifier,
    RandomK,
    ScaledSign,
    TopK,
    Zero,
)
from algorithms.core.optimizer import DistributedOptimizer
from algorithms.core.partial_sync import partial_sync
from algorithms.core.process_group import ProcessGroupCollectives
from algorithms.core.stacked import StackedCollectives
from algorithms.core.threads import ThreadCollectives, ThreadGroup, run_workers
from algorithms.core.topology import Topology
from algorithms.core.traffic import Purpose, Traffic
from algorithms.registry import algorithms

if TYPE_CHECKING:
    # For type checkers alone, which do not look for modules as the registry does.
    from algorithms.alone import Alone as Alone
    from algorithms.choco_sgd import ChocoSGD as ChocoSGD
    from algorithms.csea import CSEA as CSEA
    from algorithms.cser import CSER as CSER
    from algorithms.cser_pl import CSERPL as CSERPL
    from algorithms.cser_released import CSERReleased as CSERReleased
    from algorithms.deep_squeeze import DeepSqueeze as DeepSqueeze
    from algorithms.dpsgd import DPSGD as DPSGD
    from algorithms.ef_sgd import EFSGD as EFSGD
    from algorithms.local_sgd import LocalSGD as LocalSGD
    from algorithms.mcser import MCSER as MCSER
    from algorithms.mcser_released import MCSERReleased as MCSERReleased
    from algorithms.qsparse_local_sgd import QSparseLocalSGD as QSparseLocalSGD
    from algorithms.sgd import SGD as SGD
    from algorithms.sgd_accumulate import SGDAccumulate as SGDAccumulate

__all__ = [
    "QSGD",
    "BlockSparsifier",
    "CollectiveError",
    "Collectives",
    "Compressor",
    "DistributedOptimizer",
    "Identity",
    "PerTensorBlockSparsifier",
    "ProcessGroupCollectives",
    "Purpose",
    "RandomK",
    "ScaledSign",
    "SoloCollectives",
    "StackedCollectives",
    "ThreadCollectives",
    "ThreadGroup",
    "TopK",
    "Topology",
    "Traffic",
    "Zero",
    "algorithms",
    "partial_sync",
    "run_workers",
]


def __getattr__(name: str) -> Any:
    """The algorithms' classes (SGD, CSER, ...), found as they are asked for: no list here needs to know them."""
    for algorithm in algorithms().values():
        if algorithm.__name__ == name:
            return algorithm
    raise AttributeError(f"module 'algorithms' has no attribute {name!r}")
