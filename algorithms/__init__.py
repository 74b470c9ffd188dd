"""PyTorch optimisers that communicate, usable alone in any training script."""

from typing import TYPE_CHECKING, Any

from algorithms.core.checkpoints import load_checkpoint, newest_checkpoint, save_checkpoint
from algorithms.core.collectives import CollectiveError, Collectives, SoloCollectives, StackedCollectives
from algorithms.core.compressors import Compressor, Identity, Zero
from algorithms.core.exchange import partial_sync
from algorithms.core.optimizer import DistributedOptimizer
from algorithms.core.process_group import ProcessGroupCollectives
from algorithms.core.topology import Topology
from algorithms.core.traffic import Purpose, Traffic
from algorithms.registry import algorithms
from algorithms.registry import compressors as _compressors

if TYPE_CHECKING:
    # For type checkers alone, which do not look for modules as the registry does.
    from algorithms.alone import Alone as Alone
    from algorithms.choco_sgd import ChocoSGD as ChocoSGD
    from algorithms.compressors.block import BlockSparsifier as BlockSparsifier
    from algorithms.compressors.block import PerTensorBlockSparsifier as PerTensorBlockSparsifier
    from algorithms.compressors.chunks import ChunkTopK as ChunkTopK
    from algorithms.compressors.coordinates import RandomK as RandomK
    from algorithms.compressors.coordinates import TopK as TopK
    from algorithms.compressors.quantisers import QSGD as QSGD
    from algorithms.compressors.quantisers import ScaledSign as ScaledSign
    from algorithms.csea import CSEA as CSEA
    from algorithms.cser import CSER as CSER
    from algorithms.cser_pl import CSERPL as CSERPL
    from algorithms.cser_released import CSERReleased as CSERReleased
    from algorithms.deep_squeeze import DeepSqueeze as DeepSqueeze
    from algorithms.diloco import DiLoCo as DiLoCo
    from algorithms.dpsgd import DPSGD as DPSGD
    from algorithms.ef21_sgdm import EF21SGDM as EF21SGDM
    from algorithms.ef_sgd import EFSGD as EFSGD
    from algorithms.local_sgd import LocalSGD as LocalSGD
    from algorithms.mcser import MCSER as MCSER
    from algorithms.mcser_released import MCSERReleased as MCSERReleased
    from algorithms.noloco import NoLoCo as NoLoCo
    from algorithms.powersgd import PowerSGD as PowerSGD
    from algorithms.qsparse_local_sgd import QSparseLocalSGD as QSparseLocalSGD
    from algorithms.qsr import QSR as QSR
    from algorithms.sgd import SGD as SGD
    from algorithms.sgd_accumulate import SGDAccumulate as SGDAccumulate
    from algorithms.sparse_loco import SparseLoCo as SparseLoCo

__all__ = [
    "CollectiveError",
    "Collectives",
    "Compressor",
    "DistributedOptimizer",
    "Identity",
    "ProcessGroupCollectives",
    "Purpose",
    "SoloCollectives",
    "StackedCollectives",
    "Topology",
    "Traffic",
    "Zero",
    "algorithms",
    "load_checkpoint",
    "newest_checkpoint",
    "partial_sync",
    "save_checkpoint",
]


def __getattr__(name: str) -> Any:
    """Classes of algorithms and compressors (SGD, TopK, ...), found as they are asked for: no list here has them."""
    for item in (*algorithms().values(), *_compressors().values()):
        if item.__name__ == name:
            return item
    raise AttributeError(f"module 'algorithms' has no attribute {name!r}")
