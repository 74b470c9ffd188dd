"""PyTorch optimisers that communicate, usable alone in any training script."""

from torch.distributed.algorithms.ddp_comm_hooks.debugging_hooks import noop_hook as noop_hook

from algorithms.alone import Alone as Alone
from algorithms.choco_sgd import ChocoSGD as ChocoSGD
from algorithms.compressors.block import BlockSparsifier as BlockSparsifier
from algorithms.compressors.block import PerTensorBlockSparsifier as PerTensorBlockSparsifier
from algorithms.compressors.coordinates import ChunkTopK as ChunkTopK
from algorithms.compressors.coordinates import RandomK as RandomK
from algorithms.compressors.coordinates import TopK as TopK
from algorithms.compressors.quantisers import QSGD as QSGD
from algorithms.compressors.quantisers import QuantisedBlocks as QuantisedBlocks
from algorithms.compressors.quantisers import ScaledSign as ScaledSign
from algorithms.core.checkpoints import consensus_checkpoint as consensus_checkpoint
from algorithms.core.checkpoints import load_checkpoint as load_checkpoint
from algorithms.core.checkpoints import newest_checkpoint as newest_checkpoint
from algorithms.core.collectives import CollectiveError as CollectiveError
from algorithms.core.collectives import Collectives as Collectives
from algorithms.core.collectives import SoloCollectives as SoloCollectives
from algorithms.core.collectives import StackedCollectives as StackedCollectives
from algorithms.core.compressors import Compressor as Compressor
from algorithms.core.compressors import Identity as Identity
from algorithms.core.compressors import Zero as Zero
from algorithms.core.local_step import muon_groups as muon_groups
from algorithms.core.optimizer import DistributedOptimizer as DistributedOptimizer
from algorithms.core.process_group import ProcessGroupCollectives as ProcessGroupCollectives
from algorithms.core.traffic import Purpose as Purpose
from algorithms.core.traffic import Traffic as Traffic
from algorithms.csea import CSEA as CSEA
from algorithms.cser import CSER as CSER
from algorithms.cser_pl import CSERPL as CSERPL
from algorithms.cser_released import CSERReleased as CSERReleased
from algorithms.cser_released import MCSERReleased as MCSERReleased
from algorithms.deep_squeeze import DeepSqueeze as DeepSqueeze
from algorithms.diloco import DiLoCo as DiLoCo
from algorithms.dpsgd import DPSGD as DPSGD
from algorithms.ef21_sgdm import EF21SGDM as EF21SGDM
from algorithms.ef_sgd import EFSGD as EFSGD
from algorithms.local_sgd import LocalSGD as LocalSGD
from algorithms.mcser import MCSER as MCSER
from algorithms.noloco import NoLoCo as NoLoCo
from algorithms.powersgd import PowerSGD as PowerSGD
from algorithms.qsparse_local_sgd import QSparseLocalSGD as QSparseLocalSGD
from algorithms.qsr import QSR as QSR
from algorithms.registry import algorithms as algorithms
from algorithms.sgd import SGD as SGD
from algorithms.sgd import SGDAccumulate as SGDAccumulate
from algorithms.sparse_loco import SparseLoCo as SparseLoCo
from algorithms.streaming_diloco import StreamingDiLoCo as StreamingDiLoCo

__version__ = "0.1.0"
