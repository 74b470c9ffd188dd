"""The local step on the flat vectors, SGD's, AdamW's or Muon's: in one pass over them, or on a
slice beforehand."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim.adamw import adamw as torch_adamw
from torch.optim.sgd import sgd as torch_sgd

from cser_bench.algorithms.core.flat import FlatBuffers
from cser_bench.algorithms.core.layout import Window, Windows

VECTOR_BYTES = 128
"""Slices begin and end at multiples of this, counted from where their span begins."""
COUNTS = "tensor_steps"
"""What a state calls the AdamW steps that each tensor has done."""
COEFFICIENTS, NUM_ITERATIONS = (3.4445, -4.7750, 2.0315), 5
"""Muon's polynomial a s + b s^3 + c s^5, which takes singular values to about 1, and how often it
is applied."""
EPSILON = 1e-7
"""The least norm that Muon divides a matrix by."""
RMS = 0.2
"""The root mean square that a matrix's step has, in learning rates: about that of a step of
AdamW."""

Group = dict[str, Any]


@dataclass(frozen=True)
class Span:
    """A share of the flat vector that is stepped in one go, with the numbers of its parameter
    group.

    `num_done`: local steps that its tensors have done, where the local optimiser asks for that.
    `whole`: the matrix that it is, where it cannot be stepped in slices.
    """

    start: int
    stop: int
    group: Group
    num_done: int = 0
    whole: Window | None = None


class LocalStep(ABC):
    """What a worker would do on its own: p_i, which is subtracted from x_i.

    Args:
        flat: the parameters and gradients.
        held: where buffers are kept beside the parameters, each worker's own; they are part of the
            state.
    """

    def __init__(self, flat: FlatBuffers, held: dict[str, Tensor]) -> None:
        self.flat, self.held = flat, held

    @abstractmethod
    def buffers(self, groups: Sequence[Group]) -> list[Tensor]:
        """Returns the buffers, each of shape (local workers, d); they are made when they are first
        needed."""

    @abstractmethod
    def spans(self, groups: Sequence[Group]) -> list[Span]:
        """Returns the flat vector, in order, in shares that may be stepped in one go."""

    @abstractmethod
    def step_(
        self, span: Span, x: Tensor, g: Tensor, buffers: Sequence[Tensor], target: Tensor | None
    ) -> None:
        """x <- x - p, or target <- target + p where there is a target, coordinate by coordinate. g
        may be used up.

        All are of shape (local workers, n): a span's coordinates, or a slice of them. Rows go one
        by one: a kernel's rounding depends on where its vectors begin, and a worker's bits must not
        depend on its neighbours.
        """

    def count(self) -> None:  # noqa: B027 (SGD need not know)
        """Notes that a step is done, of all tensors but frozen ones."""

    def counts(self) -> dict[str, list[int]]:
        """Returns what the state must hold beside the buffers, by name."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Goes on from the counts of a state."""

    def apply_(self, groups: Sequence[Group], target: Tensor | None = None) -> None:
        """Does `step_` on the whole vectors; frozen tensors and their buffers stay."""
        flat, buffers = self.flat, self.buffers(groups)
        with flat.frozen_aside(flat.parameters if target is None else target, *buffers):
            for span in self.spans(groups):
                here = slice(span.start, span.stop)
                x, g, *own = (
                    vector[:, here] for vector in (flat.parameters, flat.gradients, *buffers)
                )
                self.step_(span, x, g, own, None if target is None else target[:, here])
        self.count()

    def after(
        self, groups: Sequence[Group], support: Windows, target: Tensor | None = None
    ) -> Tensor:
        """Returns `support.gather` of x or the target as `apply_` will leave it, to the bit, and
        changes nothing.

        None of the tensors there may be frozen.
        """
        parts, num_rows = [], len(self.flat.parameters)
        for window in support.windows:
            near = self._slice_after(groups, *window.span, target)
            parts.append(replace(window, offset=0).view(near).reshape(num_rows, -1))
        return torch.cat(
            [*parts, self.flat.parameters.new_zeros(num_rows, support.padding)], dim=-1
        )

    def _slice_after(
        self, groups: Sequence[Group], start: int, stop: int, target: Tensor | None
    ) -> Tensor:
        # A kernel may round what its vectors do not cover in another way (a fused multiply-add is
        # rounded once). So slices are widened to where the whole span's vectors begin and end; what
        # they hold beyond is not used.
        flat, buffers, pieces = self.flat, self.buffers(groups), []
        unit = VECTOR_BYTES // flat.parameters.element_size()
        for span in self.spans(groups):
            low, high = max(start, span.start), min(stop, span.stop)
            if low < high:
                first = low - (low - span.start) % unit
                last = min(high + (span.start - high) % unit, span.stop)
                if span.whole is not None:
                    first, last = span.start, span.stop
                x, g, *own = (
                    vector[:, first:last].clone()
                    for vector in (flat.parameters, flat.gradients, *buffers)
                )
                changed = None if target is None else target[:, first:last].clone()
                self.step_(span, x, g, own, changed)
                pieces.append((x if changed is None else changed)[:, low - first : high - first])
        return torch.cat(pieces, dim=-1)


def fused_is_right(x: Tensor) -> bool:
    """Returns whether torch's fused kernel may be used: on the CPU it leaves vectors of 16-bit
    numbers unwritten."""
    return x.device.type == "cuda" or (
        x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
    )


class Nesterov(LocalStep):
    """SGD with Nesterov momentum: m_i <- beta m_i + g_i, p_i = eta (beta m_i + g_i); weight decay
    is part of g_i.

    The buffer "momentum" is made when a group has momentum: a schedule may switch it on.
    """

    def buffers(self, groups: Sequence[Group]) -> list[Tensor]:
        if "momentum" not in self.held:
            if not any(group["momentum"] for group in groups):
                return []
            self.held["momentum"] = self.flat.new_buffer()
        return [self.held["momentum"]]

    def spans(self, groups: Sequence[Group]) -> list[Span]:
        shares = zip(self.flat.parts, groups, strict=True)
        return [
            Span(part.start, part.stop, group) for part, group in shares if part.start < part.stop
        ]

    def step_(
        self, span: Span, x: Tensor, g: Tensor, buffers: Sequence[Tensor], target: Tensor | None
    ) -> None:
        lr, decay, beta = span.group["lr"], span.group["weight_decay"], span.group["momentum"]
        if target is not None and decay:  # x's own, though the target is another
            for gradient, parameters in zip(g, x, strict=True):
                gradient.add_(parameters, alpha=decay)
        momenta: list[Tensor | None] = (
            [*buffers[0].unbind()] if buffers and beta else [None] * len(g)
        )
        torch_sgd(
            list((x if target is None else target).unbind()),
            list(g.unbind()),
            momenta,
            foreach=False,
            fused=fused_is_right(x),
            weight_decay=decay if target is None else 0.0,
            momentum=beta,
            lr=lr if target is None else -lr,
            dampening=0.0,
            nesterov=beta > 0,
            maximize=False,
        )


class DecayInMomentumOnly(Nesterov):
    """From x alone: the weight decay enters the momentum, and the direct term has none.

    A group without momentum has its decay in the gradient.
    """

    def step_(
        self, span: Span, x: Tensor, g: Tensor, buffers: Sequence[Tensor], target: Tensor | None
    ) -> None:
        group = span.group
        if not group["momentum"]:
            return super().step_(span, x, g, buffers, target)
        for own_x, own_g, own_m in zip(x, g, buffers[0], strict=True):
            own_m.mul_(group["momentum"]).add_(own_g).add_(own_x, alpha=group["weight_decay"])
            own_x.add_(own_g, alpha=-group["lr"]).add_(
                own_m, alpha=-group["lr"] * group["momentum"]
            )


class AdamW(LocalStep):
    """Adam with bias correction and decoupled weight decay, as torch.optim.AdamW has it; g_i has no
    decay in it.

    Source: Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019, algorithm 2.

        m_i <- beta1 m_i + (1 - beta1) g_i;   v_i <- beta2 v_i + (1 - beta2) g_i^2
        p_i = eta lambda x_i + eta (m_i / (1 - beta1^t)) / (sqrt(v_i / (1 - beta2^t)) + eps)

    t counts the steps that a tensor has done, which are fewer where it was frozen for a while. The
    buffers are the moments "exp_avg" and "exp_avg_sq". For parameters in fp16, which holds neither
    eps nor the square of a gradient, they are in fp32, and so is the step.
    """

    def __init__(self, flat: FlatBuffers, held: dict[str, Tensor]) -> None:
        super().__init__(flat, held)
        wide = torch.float32 if flat.parameters.dtype == torch.float16 else flat.parameters.dtype
        self._moments = [
            held.setdefault(key, flat.new_buffer(wide)) for key in ("exp_avg", "exp_avg_sq")
        ]
        self._done = [0] * len(flat.tensors)
        """Steps that each tensor has done."""

    def buffers(self, groups: Sequence[Group]) -> list[Tensor]:
        return self._moments

    def stepped_whole(self, tensor: Window, group: Group) -> bool:
        """Returns whether a tensor of the group cannot be stepped with others or in slices."""
        return False

    def spans(self, groups: Sequence[Group]) -> list[Span]:
        """Returns the groups, cut where one tensor has done more steps than the next and about what
        is whole."""
        tensors, spans = list(zip(self.flat.layout.tensors, self._done, strict=True)), []
        for part, group in zip(self.flat.parts, groups, strict=True):
            inside = [
                (done, each if self.stepped_whole(each, group) else None, each)
                for each, done in tensors
                if part.start <= each.offset < part.stop and each.numel
            ]
            for (done, whole), run in groupby(inside, key=lambda each: each[:2]):
                windows = [window for *_, window in run]
                spans.append(
                    Span(
                        windows[0].offset,
                        windows[-1].offset + windows[-1].numel,
                        group,
                        done,
                        whole,
                    )
                )
        return spans

    def step_(
        self, span: Span, x: Tensor, g: Tensor, buffers: Sequence[Tensor], target: Tensor | None
    ) -> None:
        group, (exp_avg, exp_avg_sq) = span.group, buffers
        lr, decay, (beta1, beta2) = group["lr"], group["weight_decay"], group["betas"]
        kept = x if target is None else target
        changed = kept.to(exp_avg.dtype)
        if target is not None and decay:  # x's own, though the target is another
            for own, parameters in zip(changed, x, strict=True):
                own.add_(parameters, alpha=lr * decay)
        fused = fused_is_right(changed)
        # A fill, not a copy: nobody waits for a GPU. The kernel that is not fused reads the number
        # on the host.
        device = x.device if fused else torch.device("cpu")
        steps = torch.full(
            (len(changed),), float(span.num_done), dtype=torch.float32, device=device
        )
        torch_adamw(
            list(changed.unbind()),
            list(g.to(exp_avg.dtype).unbind()),
            list(exp_avg.unbind()),
            list(exp_avg_sq.unbind()),
            [],
            list(steps.unbind()),
            foreach=False,
            fused=fused,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=lr if target is None else -lr,
            weight_decay=decay if target is None else 0.0,
            eps=group["eps"],
            maximize=False,
        )
        if changed is not kept:
            kept.copy_(changed)

    def count(self) -> None:
        self._done = [
            done + each.requires_grad
            for done, each in zip(self._done, self.flat.tensors, strict=True)
        ]

    def counts(self) -> dict[str, list[int]]:
        return {COUNTS: list(self._done)}

    def restore(self, state: dict[str, Any]) -> None:
        self._done = list(state[COUNTS])


class Muon(AdamW):
    """Muon on tensors of two axes or more, in groups that do not say muon = False; AdamW on all
    others.

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

    def stepped_whole(self, tensor: Window, group: Group) -> bool:
        is_flat = len(tensor.shape) < 2 or tensor.numel in (
            tensor.shape[0],
            tensor.numel // tensor.shape[0],
        )
        return bool(group["muon"]) and not is_flat

    def step_(
        self, span: Span, x: Tensor, g: Tensor, buffers: Sequence[Tensor], target: Tensor | None
    ) -> None:
        if span.whole is None:
            return super().step_(span, x, g, buffers, target)
        lr, decay, mu = span.group["lr"], span.group["weight_decay"], span.group["momentum"]
        g = g.to(buffers[0].dtype)
        matrix = replace(span.whole, offset=0)
        momentum = buffers[0].lerp_(g, 1 - mu)
        update = matrix.view(g.lerp(momentum, mu))
        direction = orthogonalised(update.flatten(2)).view(update.shape)
        rows, columns = update.shape[1], update[0, 0].numel()
        target, lr = (x, -lr) if target is None else (target, lr)
        target.add_(x, alpha=lr * decay)
        matrix.view(target).add_(direction, alpha=lr * RMS * max(rows, columns) ** 0.5)


def orthogonalised(matrices: Tensor) -> Tensor:
    """Returns U V^T of each U S V^T, with singular values of 0.5 to 1.5, of shape (number, rows,
    columns)."""
    wide = matrices if matrices.shape[-2] <= matrices.shape[-1] else matrices.mT
    norms = torch.linalg.vector_norm(
        wide, dim=(-2, -1), keepdim=True, dtype=torch.promote_types(wide.dtype, torch.float)
    )
    o = iterated((wide / norms.clamp(min=EPSILON)).to(iteration_type(wide.device, wide.dtype)))
    return (o if wide is matrices else o.mT).to(matrices.dtype)


def iterated(o: Tensor) -> Tensor:
    """Returns O(u) in the type of o, which is u by its norm, of shape (number, rows, columns) with
    rows <= columns."""
    a, b, c = COEFFICIENTS
    for _ in range(NUM_ITERATIONS):
        gram = o @ o.mT
        o = torch.baddbmm(o, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), o, beta=a)
    return o


def iteration_type(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """Returns the type that Muon iterates in: bfloat16 on GPUs, fp16 on Volta and Turing, which
    have no units for it.

    fp16 is the more exact here, as the iteration's numbers are no large ones, and only those below
    2^-16 are rounded more coarsely: 0.5 % from the exact iteration for 256 x 256 numbers, and
    bfloat16 4 %. GPUs before Volta have no fast units for either, and get 32 bits. Elsewhere it is
    `dtype`, the matrices' own.
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
    """Returns parameter groups for local_step = "muon", of which those of embeddings and the output
    say muon = False.

    The output is the last linear layer, in a model with embeddings only if its weight has the shape
    of one. Parameters stay in the model's order, so that there may be more than two groups.

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
    return [
        {"params": [trained for _, trained in run], "muon": is_hidden} for is_hidden, run in runs
    ]
