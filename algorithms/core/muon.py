"""Muon as the local step: matrices move by their orthogonalised momentum, all else by AdamW."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from algorithms.core.layout import Window
from algorithms.core.local_step import AdamW, Group, Span

COEFFICIENTS, NUM_ITERATIONS = (3.4445, -4.7750, 2.0315), 5
"""Of the polynomial a s + b s^3 + c s^5 that takes singular values to about 1, and how often it is applied."""
EPSILON = 1e-7
"""The least norm that a matrix is divided by."""
RMS = 0.2
"""The root mean square that a matrix's step has, in learning rates: about that of a step of AdamW."""


class Muon(AdamW):
    """Muon on tensors of two axes or more, in groups that do not say muon = False; AdamW on all others.

    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; the scale and the weight
    decay are those of Liu et al., "Muon is scalable for LLM training", arXiv 2502.16982, so that one learning rate and
    one decay serve both kinds of tensors. Inside DiLoCo it is MuLoCo (Therien et al., arXiv 2505.23725).

        m_i <- mu m_i + (1 - mu) g_i;   u_i = mu m_i + (1 - mu) g_i
        p_i = eta lambda x_i + 0.2 sqrt(max(rows, columns)) eta O(u_i)

    O(u) is U V^T of u = U S V^T, about, by five Newton-Schulz iterations, on a GPU in bfloat16. A tensor of more axes
    is a matrix with a row for each place of the first one, as a convolution's; one with a single row or column is not.
    m is kept as AdamW's first moment, "exp_avg"; the second, "exp_avg_sq", stays 0 for matrices. A matrix is stepped
    as one, for all workers at this end together, but matrices one by one, since their shapes differ.
    """

    def spans(self, groups: Sequence[Group]) -> list[Span]:
        """Returns the flat vector, in order: each matrix for itself, and AdamW's spans between."""
        spans = []
        for span in super().spans(groups):
            inside = [each for each in self.flat.layout.tensors if span.start <= each.offset < span.stop and each.numel]
            numbered = [(number if _is_matrix(each, span.group) else None, each) for number, each in enumerate(inside)]
            for number, run in groupby(numbered, key=lambda pair: pair[0]):
                windows = [window for _, window in run]
                start, stop = windows[0].offset, windows[-1].offset + windows[-1].numel
                matrix = None if number is None else Window(0, windows[0].shape, windows[0].strides)
                spans.append(Span(start, stop, span.group, span.num_done, matrix))
        return spans

    def step_(
        self, span: Span, x: Tensor, g: Tensor, buffers: Sequence[Tensor], target: Tensor | None, sign: int
    ) -> None:
        """See `LocalStep`; of a matrix all coordinates must be there."""
        if span.whole is None:
            return super().step_(span, x, g, buffers, target, sign)
        lr, decay, mu = span.group["lr"], span.group["weight_decay"], span.group["momentum"]
        target = x if target is None else target
        momentum = buffers[0].lerp_(g, 1 - mu)
        update = span.whole.view(g.lerp(momentum, mu))
        direction = orthogonalised(update.flatten(2)).view(update.shape)
        rows, columns = update.shape[1], update[0, 0].numel()
        target.add_(x, alpha=sign * lr * decay)
        span.whole.view(target).add_(direction, alpha=sign * lr * RMS * max(rows, columns) ** 0.5)


def _is_matrix(tensor: Window, group: Group) -> bool:
    is_flat = len(tensor.shape) < 2 or tensor.numel in (tensor.shape[0], tensor.numel // tensor.shape[0])
    return bool(group["muon"]) and not is_flat


def orthogonalised(matrices: Tensor) -> Tensor:
    """Returns U V^T of each U S V^T, with singular values of 0.5 to 1.5, of shape (number, rows, columns)."""
    wide = matrices if matrices.shape[-2] <= matrices.shape[-1] else matrices.mT
    norms = torch.linalg.vector_norm(
        wide, dim=(-2, -1), keepdim=True, dtype=torch.promote_types(wide.dtype, torch.float)
    )
    o: Tensor = wide / norms.clamp(min=EPSILON)
    o = o.to(torch.bfloat16 if o.is_cuda else o.dtype)
    a, b, c = COEFFICIENTS
    for _ in range(NUM_ITERATIONS):
        gram = o @ o.mT
        o = torch.baddbmm(o, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), o, beta=a)
    return (o if wide is matrices else o.mT).to(matrices.dtype)


def muon_groups(model: nn.Module, parameters: Iterable[Parameter] | None = None) -> list[dict[str, Any]]:
    """Returns parameter groups for local_step = "muon", of which those of embeddings and the output say muon = False.

    The output is the last linear layer, in a model with embeddings only if its weight has the shape of one. Parameters
    stay in the model's order, so that there may be more than two groups.

    Args:
        parameters: what is trained in place of the model's own, in the same order.
    """
    embeddings = [each for each in model.modules() if isinstance(each, nn.Embedding)]
    last = [each for each in model.modules() if isinstance(each, nn.Linear)][-1:]
    shapes = {each.weight.shape for each in embeddings} or {each.weight.shape for each in last}
    apart = {id(each.weight) for each in (*embeddings, *last) if each.weight.shape in shapes}
    own = list(model.parameters())
    pairs = zip(own, own if parameters is None else parameters, strict=True)
    runs = groupby(pairs, key=lambda pair: id(pair[0]) not in apart)
    return [{"params": [trained for _, trained in run], "muon": is_hidden} for is_hidden, run in runs]
