"""Muon on hidden matrices, and AdamW on all other parameters."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim.optimizer import Optimizer

from cser_bench.algorithms.core.layout import Window
from cser_bench.algorithms.core.local_step import Group, Span
from cser_bench.algorithms.local_steps.adamw import AdamW

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients (a, b, c) of Muon's polynomial a s + b s^3 + c s^5, which takes singular values to
about 1."""
NUM_ITERATIONS = 5
"""How often it is applied."""
EPSILON = 1e-7
"""The least norm that Muon divides a matrix by."""
RMS = 0.2
"""The root mean square that a matrix's step has, in learning rates: about that of a step of
AdamW."""


class Muon(AdamW):
    """Muon on tensors of two axes or more, in groups with muon = True; AdamW on all others.

    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; the
    scale and the weight decay are those of Liu et al., "Muon is scalable for LLM training", arXiv
    2502.16982, so that one learning rate and one decay serve both kinds of tensors. Inside DiLoCo
    it is MuLoCo (Therien et al., arXiv 2505.23725).

        m_i <- mu m_i + (1 - mu) g_i;   u_i = mu m_i + (1 - mu) g_i
        p_i = eta lambda x_i + 0.2 sqrt(max(rows, columns)) eta O(u_i)

    O(u) is U V^T of u = U S V^T, about, by five Newton-Schulz iterations, on a GPU in the 16 bits
    that it multiplies fast; see `iteration_type`. A tensor of more axes is a matrix with a row for
    each place of the first one, as a convolution's; one with a single row or column is not. m is
    kept as AdamW's first moment, "exp_avg"; the second, "exp_avg_sq", stays 0 for matrices. A
    matrix is stepped as one, for all workers at this end together, but matrices one by one, since
    their shapes differ.
    """

    name = "muon"
    numbers: ClassVar = {**AdamW.numbers, "momentum": 0.95}
    options: ClassVar = {"muon": True}
    # Its second moment is AdamW's for some tensors, and none for others.
    moments = ()
    rule = "by Muon's rule"
    words = f"Muon with momentum {{momentum:g}} on hidden matrices, else {AdamW.words}"

    @classmethod
    def groups(cls, model: nn.Module, parameters: Iterable[Parameter]) -> Iterable[Any]:
        return muon_groups(model, parameters)

    @classmethod
    def in_torch(
        cls, parameters: Iterable[Parameter], **numbers: Any
    ) -> Optimizer | None:
        # torch.optim.Muon takes matrices alone.
        return None

    def stepped_whole(self, tensor: Window, group: Group) -> bool:
        if not group["muon"] or len(tensor.shape) < 2:
            return False
        rows = tensor.shape[0]
        columns = tensor.numel // rows
        return rows > 1 and columns > 1

    def step_(
        self,
        span: Span,
        x: Tensor,
        g: Tensor,
        buffers: Sequence[Tensor],
        target: Tensor | None,
    ) -> None:
        if span.whole is None:
            return super().step_(span, x, g, buffers, target)
        lr = span.group["lr"]
        mu = span.group["momentum"]
        g = g.to(buffers[0].dtype)  # (local workers, rows * columns)
        matrix = replace(span.whole, offset=0)
        # m <- mu m + (1 - mu) g;   u = mu m + (1 - mu) g
        momentum = buffers[0].lerp_(g, 1 - mu)
        update = matrix.view(g.lerp(momentum, mu))  # (local workers, rows, ...)
        direction = orthogonalised(update.flatten(2)).view(update.shape)
        rows = update.shape[1]
        columns = update[0, 0].numel()
        if target is None:
            target = x
            lr = -lr
        # Before the direction, since the target may be x, and the decay is of x before this step.
        target.add_(x, alpha=lr * span.group["weight_decay"])
        matrix.view(target).add_(direction, alpha=lr * RMS * max(rows, columns) ** 0.5)


def orthogonalised(matrices: Tensor) -> Tensor:
    """Return U V^T of each U S V^T, with singular values of 0.5 to 1.5.

    Matrices are of shape (number, rows, columns).
    """
    # The iteration multiplies by u u^T, which is the smaller one of the two if rows <= columns.
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    wide = matrices.mT if is_tall else matrices
    # By its Frobenius norm all singular values are at most 1, where the iteration converges.
    norms = torch.linalg.vector_norm(
        wide,
        dim=(-2, -1),
        keepdim=True,
        dtype=torch.promote_types(wide.dtype, torch.float),
    )
    scaled = wide / norms.clamp(min=EPSILON)
    o = iterated(scaled.to(iteration_type(wide.device, wide.dtype)))
    if is_tall:
        o = o.mT
    return o.to(matrices.dtype)


def iterated(o: Tensor) -> Tensor:
    """Return O(u) in the type of o, which is u by its norm.

    Both are of shape (number, rows, columns) with rows <= columns.
    """
    a, b, c = COEFFICIENTS
    for _ in range(NUM_ITERATIONS):
        gram = o @ o.mT  # (number, rows, rows)
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # b G + c G^2
        o = torch.baddbmm(o, factor, o, beta=a)  # a O + (b G + c G^2) O
    return o


def iteration_type(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """Return the type that Muon iterates in: bfloat16 on GPUs, fp16 on Volta and Turing.

    These have no units for bfloat16. fp16 is the more exact here, as the iteration's numbers are no
    large ones, and only those below 2^-16 are rounded more coarsely: 0.5 % from the exact iteration
    for 256 x 256 numbers, and bfloat16 4 %. GPUs before Volta have no fast units for either, and
    get 32 bits. Elsewhere it is `dtype`, the matrices' own.
    """
    if device.type != "cuda":
        return dtype
    major, _ = torch.cuda.get_device_capability(device)
    if major >= 8:
        return torch.bfloat16
    return torch.float16 if major == 7 else torch.float32


def muon_groups(
    model: nn.Module, parameters: Iterable[Parameter] | None = None
) -> list[dict[str, Any]]:
    """Return parameter groups for local_step = "muon".

    Those of embeddings and the output say muon = False. The output is the last linear layer, in a
    model with embeddings only if its weight has the shape of one. Parameters stay in the model's
    order, so that there may be more than two groups.

    Args:
        parameters: what is trained in place of the model's own, in the same order.
    """
    embeddings = [
        module for module in model.modules() if isinstance(module, nn.Embedding)
    ]
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    output = linear[-1:]
    shapes = {module.weight.shape for module in embeddings or output}
    # By identity: an output may be tied to an embedding.
    apart = set()
    for module in (*embeddings, *output):
        if module.weight.shape in shapes:
            apart.add(id(module.weight))
    held = list(model.parameters())
    trained = held if parameters is None else list(parameters)
    groups: list[dict[str, Any]] = []
    for parameter, replacement in zip(held, trained, strict=True):
        is_hidden = id(parameter) not in apart
        # A new group whenever the kind changes, so that the order stays the model's.
        if not groups or groups[-1]["muon"] != is_hidden:
            groups.append({"params": [], "muon": is_hidden})
        groups[-1]["params"].append(replacement)
    return groups
