"""FSDP2 (`fully_shard`) with compressed gradients: a reduce-scatter of its own, no method."""

import torch
import torch.distributed as dist
from torch import Tensor

from cser_bench.algorithms.compressors.quantisers import QuantisedBlocks


class CompressedReduceScatter:
    """Has each rank quantise its gradient, send every rank that rank's slice, and average the rest.

    For one sharded module:

        layer.set_custom_reduce_scatter(CompressedReduceScatter(QuantisedBlocks(4)))

    which FSDP2 of PyTorch 2.6 has not yet. Gradients must be averaged in fp32 or bf16.

    Error feedback keeps the error of each number of the gradient before it is sharded, in 32 bits:
    on every rank as much as the whole module, and FSDP's state leaves it out.

    Args:
        compressor: how a slice is quantised.
        error_feedback: what the quantiser leaves out is added to the next gradient; with 1 bit it
            should be on.

    Raises:
        ValueError: when called for another operation than a mean.
    """

    def __init__(
        self, compressor: QuantisedBlocks, error_feedback: bool = True
    ) -> None:
        self.compressor = compressor
        self.error_feedback = error_feedback
        self.error: Tensor | None = None
        """What was left out so far, of shape (ranks, numbers of a slice); None before the first call."""
        self.payload_bits = 0
        """What this rank contributed so far, its own slice included."""

    def allocate(
        self, size: tuple[int, ...], *, dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """Return the buffer that FSDP asks for."""
        return torch.empty(size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        op: object,
        async_op: bool = False,
    ) -> None:
        if op != dist.ReduceOp.AVG:
            raise ValueError(
                f"only means are compressed, not {op}: reduce in fp32 or bf16, without a divide "
                "factor"
            )
        # (ranks, numbers of a slice): row r is what rank r will own. In fp32, as a quantiser's
        # scale is.
        slices = input_tensor.view(group.size(), -1).float()
        if self.error is not None:
            slices += self.error
        message = self.compressor.encode(slices)
        # (ranks, blocks, bytes): row r is rank r's message on this rank's slice.
        received = torch.empty_like(message)
        dist.all_to_all_single(received, message, group=group)
        self.payload_bits += 8 * message.numel()
        numel = slices.shape[1]
        if self.error_feedback:
            # The error covers all rows, the own one too, which is quantised as the others are.
            self.error = slices - self.compressor.decode(message, numel, slices.dtype)
        # Decoded before they are added: codes of blocks with other scales cannot be.
        decoded = self.compressor.decode(received, numel, slices.dtype)
        output_tensor.copy_(decoded.mean(dim=0))
