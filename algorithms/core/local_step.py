"""The local step on the flat vectors, SGD's, AdamW's or Muon's.

It goes over them in one pass, or is done on a slice beforehand.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
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

Group = dict[str, Any]


@dataclass(frozen=True)
class Span:
    """A share of the flat vector that is stepped in one go, with its group's numbers.

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
        self.flat = flat
        self.held = held

    @abstractmethod
    def buffers(self, groups: Sequence[Group]) -> list[Tensor]:
        """Return the buffers, each of shape (local workers, d), made when they are first needed."""

    @abstractmethod
    def spans(self, groups: Sequence[Group]) -> list[Span]:
        """Return the flat vector, in order, in shares that may be stepped in one go."""

    @abstractmethod
    def step_(
        self, span: Span, x: Tensor, g: Tensor, buffers: Sequence[Tensor], target: Tensor | None
    ) -> None:
        """Do x <- x - p, or target <- target + p where there is a target. g may be used up.

        All are of shape (local workers, n): a span's coordinates, or a slice of them. Rows go one
        by one: a kernel's rounding depends on where its vectors begin, and a worker's bits must not
        depend on its neighbours.
        """

    def count(self) -> None:  # noqa: B027 (SGD need not know)
        """Note that a step is done, of all tensors but frozen ones."""

    def counts(self) -> dict[str, list[int]]:
        """Return what the state must hold beside the buffers, by name."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Go on from the counts of a state."""

    def apply_(self, groups: Sequence[Group], target: Tensor | None = None) -> None:
        """Do `step_` on the whole vectors; frozen tensors and their buffers stay."""
        flat = self.flat
        buffers = self.buffers(groups)
        changed = flat.parameters if target is None else target
        # Kernels step whole spans, frozen tensors included; these are put back afterwards.
        with flat.frozen_aside(changed, *buffers):
            for span in self.spans(groups):
                here = slice(span.start, span.stop)
                self.step_(
                    span,
                    flat.parameters[:, here],
                    flat.gradients[:, here],
                    [buffer[:, here] for buffer in buffers],
                    None if target is None else target[:, here],
                )
        self.count()

    def after(
        self, groups: Sequence[Group], support: Windows, target: Tensor | None = None
    ) -> Tensor:
        """Return `support.gather` of x or the target as `apply_` will leave it, to the bit.

        Nothing is changed. None of the tensors there may be frozen.
        """
        num_rows = len(self.flat.parameters)
        parts = []
        for window in support.windows:
            # Everything between a window's first and last coordinate is stepped, then picked from.
            near = self._slice_after(groups, *window.span, target)  # (local workers, span)
            in_slice = replace(window, offset=0)
            parts.append(in_slice.view(near).reshape(num_rows, -1))
        parts.append(self.flat.parameters.new_zeros(num_rows, support.padding))
        return torch.cat(parts, dim=-1)

    def _slice_after(
        self, groups: Sequence[Group], start: int, stop: int, target: Tensor | None
    ) -> Tensor:
        flat = self.flat
        buffers = self.buffers(groups)
        unit = VECTOR_BYTES // flat.parameters.element_size()
        pieces = []
        for span in self.spans(groups):
            low = max(start, span.start)
            high = min(stop, span.stop)
            if low >= high:
                continue
            # A kernel may round what its vectors do not cover in another way (a fused multiply-add
            # is rounded once). So slices are widened to where the whole span's vectors begin and
            # end; what they hold beyond is not used.
            first = low - (low - span.start) % unit
            last = min(high + (span.start - high) % unit, span.stop)
            # Muon's step of a matrix depends on all of it.
            if span.whole is not None:
                first = span.start
                last = span.stop
            here = slice(first, last)
            # Copies, as `step_` writes: (local workers, last - first).
            x = flat.parameters[:, here].clone()
            g = flat.gradients[:, here].clone()
            own_buffers = [buffer[:, here].clone() for buffer in buffers]
            own_target = None if target is None else target[:, here].clone()
            self.step_(span, x, g, own_buffers, own_target)
            changed = x if own_target is None else own_target
            pieces.append(changed[:, low - first : high - first])
        return torch.cat(pieces, dim=-1)


def fused_is_right(x: Tensor) -> bool:
    """Return whether torch's fused kernel may be used.

    On the CPU it leaves vectors of 16-bit numbers unwritten.
    """
    if x.device.type == "cpu":
        return x.dtype in (torch.float32, torch.float64)
    return x.device.type == "cuda"


class Nesterov(LocalStep):
    """SGD with Nesterov momentum: m_i <- beta m_i + g_i, p_i = eta (beta m_i + g_i).

    Weight decay is part of g_i. The buffer "momentum" is made when a group has momentum: a schedule
    may switch it on.
    """

    def buffers(self, groups: Sequence[Group]) -> list[Tensor]:
        if "momentum" not in self.held:
            if not any(group["momentum"] for group in groups):
                return []
            self.held["momentum"] = self.flat.new_buffer()
        return [self.held["momentum"]]

    def spans(self, groups: Sequence[Group]) -> list[Span]:
        spans = []
        for part, group in zip(self.flat.parts, groups, strict=True):
            if part.start < part.stop:
                spans.append(Span(part.start, part.stop, group))
        return spans

    def step_(
        self, span: Span, x: Tensor, g: Tensor, buffers: Sequence[Tensor], target: Tensor | None
    ) -> None:
        lr = span.group["lr"]
        decay = span.group["weight_decay"]
        beta = span.group["momentum"]
        changed = x
        if target is not None:
            # The kernel subtracts, and its weight decay would be the target's, not x's own.
            changed = target
            lr = -lr
            if decay:
                for gradient, parameters in zip(g, x, strict=True):
                    gradient.add_(parameters, alpha=decay)
                decay = 0.0
        # A row each: torch steps a list of tensors, here the local workers' vectors.
        momenta: list[Tensor | None] = [None] * len(g)
        if buffers and beta:
            momenta = list(buffers[0].unbind())
        # m <- beta m + g;   x <- x - eta (beta m + g)
        torch_sgd(
            list(changed.unbind()),
            list(g.unbind()),
            momenta,
            foreach=False,
            fused=fused_is_right(x),
            weight_decay=decay,
            momentum=beta,
            lr=lr,
            dampening=0.0,
            nesterov=beta > 0,
            maximize=False,
        )


class DecayInMomentumOnly(Nesterov):
    """SGD whose weight decay enters the momentum, and not the direct term; from x alone.

    A group without momentum has its decay in the gradient.
    """

    def step_(
        self, span: Span, x: Tensor, g: Tensor, buffers: Sequence[Tensor], target: Tensor | None
    ) -> None:
        lr = span.group["lr"]
        beta = span.group["momentum"]
        if not beta:
            return super().step_(span, x, g, buffers, target)
        for own_x, own_g, own_m in zip(x, g, buffers[0], strict=True):
            # Momentum first, whose decay takes x from before this step: m <- beta m + g + lambda x
            own_m.mul_(beta).add_(own_g).add_(own_x, alpha=span.group["weight_decay"])
            # x <- x - eta (g + beta m), without lambda x in the direct term
            own_x.add_(own_g, alpha=-lr)
            own_x.add_(own_m, alpha=-lr * beta)


class AdamW(LocalStep):
    """Adam with bias correction and decoupled weight decay, as torch.optim.AdamW has it.

    Source: Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019, algorithm 2.

        m_i <- beta1 m_i + (1 - beta1) g_i;   v_i <- beta2 v_i + (1 - beta2) g_i^2
        p_i = eta lambda x_i + eta (m_i / (1 - beta1^t)) / (sqrt(v_i / (1 - beta2^t)) + eps)

    g_i has no decay in it. t counts the steps that a tensor has done, which are fewer where it was
    frozen for a while. The buffers are the moments "exp_avg" and "exp_avg_sq". For parameters in
    fp16, which holds neither eps nor the square of a gradient, they are in fp32, and so is the
    step.
    """

    def __init__(self, flat: FlatBuffers, held: dict[str, Tensor]) -> None:
        super().__init__(flat, held)
        dtype = flat.parameters.dtype
        # fp16 has no room for eps = 1e-8 or for g^2.
        if dtype == torch.float16:
            dtype = torch.float32
        self._moments = []
        for key in ("exp_avg", "exp_avg_sq"):
            moment = held.setdefault(key, flat.new_buffer(dtype))
            self._moments.append(moment)
        self._done = [0] * len(flat.tensors)
        """Steps that each tensor has done."""

    def buffers(self, groups: Sequence[Group]) -> list[Tensor]:
        return self._moments

    def stepped_whole(self, tensor: Window, group: Group) -> bool:
        """Return whether a tensor of the group cannot be stepped with others or in slices."""
        return False

    def spans(self, groups: Sequence[Group]) -> list[Span]:
        """Return the groups, cut where tensors have done other numbers of steps, or are whole."""
        spans: list[Span] = []
        for part, group in zip(self.flat.parts, groups, strict=True):
            # The span that the next tensor of this group may extend.
            last: Span | None = None
            for tensor, done in zip(self.flat.layout.tensors, self._done, strict=True):
                # Not in this group, or empty.
                if not (part.start <= tensor.offset < part.stop and tensor.numel):
                    continue
                whole = tensor if self.stepped_whole(tensor, group) else None
                stop = tensor.offset + tensor.numel
                # Two matrices are never joined: their windows begin at different places.
                if last is not None and (last.num_done, last.whole) == (done, whole):
                    last = replace(last, stop=stop)
                    spans[-1] = last
                else:
                    last = Span(tensor.offset, stop, group, done, whole)
                    spans.append(last)
        return spans

    def step_(
        self, span: Span, x: Tensor, g: Tensor, buffers: Sequence[Tensor], target: Tensor | None
    ) -> None:
        exp_avg, exp_avg_sq = buffers  # m and v: (local workers, n)
        lr = span.group["lr"]
        decay = span.group["weight_decay"]
        beta1, beta2 = span.group["betas"]
        kept = x if target is None else target
        # A copy where parameters are fp16, `kept` itself elsewhere.
        changed = kept.to(exp_avg.dtype)
        if target is not None:
            # The kernel subtracts, and its weight decay would be the target's, not x's own.
            if decay:
                for row, parameters in zip(changed, x, strict=True):
                    row.add_(parameters, alpha=lr * decay)
                decay = 0.0
            lr = -lr
        fused = fused_is_right(changed)
        # t - 1 of each row: the kernel adds 1 before it corrects the bias. A fill, not a copy, so
        # the host does not wait for a GPU. The kernel that is not fused reads it on the host.
        steps = torch.full(
            (len(changed),),
            float(span.num_done),
            dtype=torch.float32,
            device=x.device if fused else torch.device("cpu"),
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
            lr=lr,
            weight_decay=decay,
            eps=span.group["eps"],
            maximize=False,
        )
        if changed is not kept:
            kept.copy_(changed)

    def count(self) -> None:
        for number, tensor in enumerate(self.flat.tensors):
            self._done[number] += int(tensor.requires_grad)

    def counts(self) -> dict[str, list[int]]:
        return {COUNTS: list(self._done)}

    def restore(self, state: dict[str, Any]) -> None:
        self._done = list(state[COUNTS])


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

    def stepped_whole(self, tensor: Window, group: Group) -> bool:
        if not group["muon"] or len(tensor.shape) < 2:
            return False
        rows = tensor.shape[0]
        columns = tensor.numel // rows
        return rows > 1 and columns > 1

    def step_(
        self, span: Span, x: Tensor, g: Tensor, buffers: Sequence[Tensor], target: Tensor | None
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
        wide, dim=(-2, -1), keepdim=True, dtype=torch.promote_types(wide.dtype, torch.float)
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
    embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
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
