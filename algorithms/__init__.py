"""PyTorch optimisers that communicate, usable alone in any training script."""

# Its functions have the group of all workers as a default argument. Where it is first imported after
# `init_process_group`, these keep the group until the interpreter ends, whose threads then abort a
# run that has finished (exit status -6, with any optimiser). Imported before, the default is None.
import torch.distributed.nn.functional as _functional  # noqa: F401
from torch.distributed.algorithms.ddp_comm_hooks.debugging_hooks import (
    noop_hook as noop_hook,
)

from cser_bench import __version__ as __version__
from cser_bench.algorithms.alone import Alone as Alone
from cser_bench.algorithms.choco_sgd import ChocoSGD as ChocoSGD
from cser_bench.algorithms.compressors.block import BlockSparsifier as BlockSparsifier
from cser_bench.algorithms.compressors.block import (
    PerTensorBlockSparsifier as PerTensorBlockSparsifier,
)
from cser_bench.algorithms.compressors.coordinates import ChunkTopK as ChunkTopK
from cser_bench.algorithms.compressors.coordinates import RandomK as RandomK
from cser_bench.algorithms.compressors.coordinates import TopK as TopK
from cser_bench.algorithms.compressors.quantisers import QSGD as QSGD
from cser_bench.algorithms.compressors.quantisers import (
    QuantisedBlocks as QuantisedBlocks,
)
from cser_bench.algorithms.compressors.quantisers import ScaledSign as ScaledSign
from cser_bench.algorithms.compressors.reduce_scatter import (
    CompressedReduceScatter as CompressedReduceScatter,
)
from cser_bench.algorithms.core.checkpoints import (
    consensus_checkpoint as consensus_checkpoint,
)
from cser_bench.algorithms.core.checkpoints import load_checkpoint as load_checkpoint
from cser_bench.algorithms.core.checkpoints import (
    newest_checkpoint as newest_checkpoint,
)
from cser_bench.algorithms.core.collectives import CollectiveError as CollectiveError
from cser_bench.algorithms.core.collectives import Collectives as Collectives
from cser_bench.algorithms.core.collectives import SoloCollectives as SoloCollectives
from cser_bench.algorithms.core.collectives import (
    StackedCollectives as StackedCollectives,
)
from cser_bench.algorithms.core.compressors import Compressor as Compressor
from cser_bench.algorithms.core.compressors import Identity as Identity
from cser_bench.algorithms.core.compressors import Zero as Zero
from cser_bench.algorithms.core.optimizer import (
    DistributedOptimizer as DistributedOptimizer,
)
from cser_bench.algorithms.core.process_group import (
    ProcessGroupCollectives as ProcessGroupCollectives,
)
from cser_bench.algorithms.core.traffic import Purpose as Purpose
from cser_bench.algorithms.core.traffic import Traffic as Traffic
from cser_bench.algorithms.csea import CSEA as CSEA
from cser_bench.algorithms.cser import CSER as CSER
from cser_bench.algorithms.cser_pl import CSERPL as CSERPL
from cser_bench.algorithms.cser_released import CSERReleased as CSERReleased
from cser_bench.algorithms.cser_released import MCSERReleased as MCSERReleased
from cser_bench.algorithms.ddp_hook import ErrorFeedbackState as ErrorFeedbackState
from cser_bench.algorithms.ddp_hook import error_feedback_hook as error_feedback_hook
from cser_bench.algorithms.deep_squeeze import DeepSqueeze as DeepSqueeze
from cser_bench.algorithms.diloco import DiLoCo as DiLoCo
from cser_bench.algorithms.dpsgd import DPSGD as DPSGD
from cser_bench.algorithms.ef21_sgdm import EF21SGDM as EF21SGDM
from cser_bench.algorithms.ef_sgd import EFSGD as EFSGD
from cser_bench.algorithms.local_sgd import LocalSGD as LocalSGD
from cser_bench.algorithms.local_steps.muon import muon_groups as muon_groups
from cser_bench.algorithms.mcser import MCSER as MCSER
from cser_bench.algorithms.noloco import NoLoCo as NoLoCo
from cser_bench.algorithms.powersgd import PowerSGD as PowerSGD
from cser_bench.algorithms.qsparse_local_sgd import QSparseLocalSGD as QSparseLocalSGD
from cser_bench.algorithms.qsr import QSR as QSR
from cser_bench.algorithms.registry import algorithms as algorithms
from cser_bench.algorithms.sgd import SGD as SGD
from cser_bench.algorithms.sgd import SGDAccumulate as SGDAccumulate
from cser_bench.algorithms.sparse_loco import SparseLoCo as SparseLoCo
from cser_bench.algorithms.streaming_diloco import StreamingDiLoCo as StreamingDiLoCo

# Without the function `algorithms`, which would hide the folder of that name where all are imported.
__all__ = [
    "CSEA",
    "CSER",
    "CSERPL",
    "DPSGD",
    "EF21SGDM",
    "EFSGD",
    "MCSER",
    "QSGD",
    "QSR",
    "SGD",
    "Alone",
    "BlockSparsifier",
    "CSERReleased",
    "ChocoSGD",
    "ChunkTopK",
    "CollectiveError",
    "Collectives",
    "CompressedReduceScatter",
    "Compressor",
    "DeepSqueeze",
    "DiLoCo",
    "DistributedOptimizer",
    "ErrorFeedbackState",
    "Identity",
    "LocalSGD",
    "MCSERReleased",
    "NoLoCo",
    "PerTensorBlockSparsifier",
    "PowerSGD",
    "ProcessGroupCollectives",
    "Purpose",
    "QSparseLocalSGD",
    "QuantisedBlocks",
    "RandomK",
    "SGDAccumulate",
    "ScaledSign",
    "SoloCollectives",
    "SparseLoCo",
    "StackedCollectives",
    "StreamingDiLoCo",
    "TopK",
    "Traffic",
    "Zero",
    "consensus_checkpoint",
    "error_feedback_hook",
    "load_checkpoint",
    "muon_groups",
    "newest_checkpoint",
    "noop_hook",
]
