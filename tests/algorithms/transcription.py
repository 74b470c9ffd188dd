"""The algorithms in slow NumPy, line by line from their definitions: x[i], m[i], e[i] are worker
i's vectors.

A compressor is a function of (step, purpose, the workers' vectors) that returns the workers' C(v).
A method goes on for ever.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Vectors = Array
"""A vector for each worker, of shape (workers, d)."""
Compress = Callable[[int, str, Vectors], Vectors]
Mask = Callable[[int, str], NDArray[np.bool_]]
State = tuple[Vectors, Vectors | list[Array]]
Shapes = Sequence[tuple[int, ...]]


@dataclass
class Problem:
    """Where to start, the gradients (a function of x, step, worker), and each coordinate's
    settings."""

    start: Array
    gradient: Callable[[Array, int, int], Array]
    num_workers: int
    eta: Array
    beta: float
    decay: Array
    adam: AdamW | None = None
    """Another local step than Nesterov's."""

    def everywhere(self, value: Array) -> Vectors:
        return np.tile(value, (self.num_workers, 1))

    def zeros(self) -> Vectors:
        return self.everywhere(0 * self.start)

    def gradients(self, xs: Vectors, step: int) -> Vectors:
        """g_i at x_i, without weight decay."""
        return np.array([self.gradient(x, step, i) for i, x in enumerate(xs)])


def mean(vectors: Vectors | list[Array]) -> Array:
    result: Array = np.sum(vectors, axis=0) / len(vectors)
    return result


def updates(problem: Problem, momenta: Vectors, xs: Vectors, step: int) -> Vectors:
    """The workers' p, of their own gradients."""
    return updates_of(problem, momenta, xs, problem.gradients(xs, step))


def updates_of(
    problem: Problem, momenta: Vectors, xs: Vectors, gradients: Vectors
) -> Vectors:
    """g <- g + lambda x;  m <- beta m + g;  p = eta (beta m + g), for each worker."""
    if problem.adam is not None:
        return problem.adam.updates(problem, gradients, xs)
    g = gradients + problem.decay * xs
    momenta[:] = problem.beta * momenta + g
    return problem.eta * (problem.beta * momenta + g)


class AdamW:
    """Each worker has m and v, after t steps; p = eta (lambda x + mhat / (sqrt(vhat) + eps)).

    Where the first coordinates are matrices, these move by Muon: p = eta (lambda x + 0.2
    sqrt(max(rows, columns)) O(u)) with m <- mu m + (1 - mu) g and u = mu m + (1 - mu) g.
    """

    def __init__(
        self,
        zero: Vectors,
        betas: tuple[float, float],
        eps: float,
        mu: float,
        shapes: Shapes,
    ) -> None:
        num_coordinates = zero.shape[1]
        num_in_matrices = sum(math.prod(shape) for shape in shapes)
        in_matrix = np.arange(num_coordinates) < num_in_matrices
        self.m = zero.copy()
        self.v = zero.copy()
        self.t = 0
        self.b1 = np.where(in_matrix, mu, betas[0])
        self.b2 = betas[1]
        self.eps = eps
        self.shapes = shapes

    def updates(self, problem: Problem, gradients: Vectors, xs: Vectors) -> Vectors:
        self.t += 1
        self.m = self.b1 * self.m + (1 - self.b1) * gradients
        self.v = self.b2 * self.v + (1 - self.b2) * gradients**2
        mhat = self.m / (1 - self.b1**self.t)
        vhat = self.v / (1 - self.b2**self.t)
        direction = mhat / (np.sqrt(vhat) + self.eps)
        u = self.b1 * self.m + (1 - self.b1) * gradients
        for shape, here in zip(self.shapes, slices_of(self.shapes), strict=True):
            scale = 0.2 * max(shape) ** 0.5
            for i in range(problem.num_workers):
                matrix = u[i, here].reshape(shape)
                direction[i, here] = scale * polar(matrix).reshape(-1)
        return problem.eta * (problem.decay * xs + direction)


def slices_of(shapes: Shapes) -> Iterator[slice]:
    """The coordinates of each tensor in the vector of all."""
    offset = 0
    for shape in shapes:
        end = offset + math.prod(shape)
        yield slice(offset, end)
        offset = end


def polar(u: Array) -> Array:
    """O(u): X <- a X + (b A + c A^2) X, five times, A = X X^T, from u over its Frobenius norm,
    lying wide."""
    rows, columns = u.shape
    if rows > columns:
        return polar(u.T).T
    x = u / max(np.linalg.norm(u), 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


def released_updates(
    problem: Problem, momenta: Vectors, xs: Vectors, step: int
) -> Vectors:
    """m <- beta m + (g + lambda x);  p = eta (beta m + g): the decay is missing in the direct
    term."""
    g = problem.gradients(xs, step)
    momenta[:] = problem.beta * momenta + (g + problem.decay * xs)
    return problem.eta * (problem.beta * momenta + g)


def psync(
    v: Vectors, compress: Compress, step: int, purpose: str
) -> tuple[Vectors, Vectors]:
    """r = v - C(v);  v' = mean(C(v)) + r."""
    sent = compress(step, purpose, v)
    r = v - sent
    return mean(sent) + r, r


def sgd(problem: Problem) -> Iterator[State]:
    x = problem.start.copy()
    m = problem.zeros()
    for t in count(1):
        p = updates(problem, m, problem.everywhere(x), t)
        x = x - mean(p)
        yield problem.everywhere(x), []


def sgd_accumulate(problem: Problem, accumulation_steps: int) -> Iterator[State]:
    """SGD on the mean of all gradients since the last step, which are all of the same x."""
    x = problem.start.copy()
    m = 0 * problem.start
    since: list[Array] = []
    for t in count(1):
        since.extend(problem.gradients(problem.everywhere(x), t))
        if t % accumulation_steps == 0:
            g = mean(since) + problem.decay * x
            m = problem.beta * m + g
            x = x - problem.eta * (problem.beta * m + g)
            since = []
        yield problem.everywhere(x), []


def ef_sgd(
    problem: Problem,
    compress: Compress,
    drop_rest: bool = False,
    decay_apart: bool = False,
) -> Iterator[State]:
    x = problem.start.copy()
    v = 0 * problem.start
    m = problem.zeros()
    e = problem.zeros()
    for t in count(1):
        if decay_apart:
            g = problem.gradients(problem.everywhere(x), t)
            m = problem.beta * m + g
            p = problem.eta * (problem.beta * m + g)
            v = problem.beta * v + problem.decay * x
            x = x - problem.eta * (problem.beta * v + problem.decay * x)
        else:
            p = updates(problem, m, problem.everywhere(x), t)
        e = e + p
        sent = compress(t, "gradient", e)
        x = x - mean(sent)
        e = problem.zeros() if drop_rest else e - sent
        yield problem.everywhere(x), e


def ef_on_gradients(problem: Problem, compress: Compress) -> Iterator[State]:
    """What is sent are gradients; all workers then take the same step."""
    e = problem.zeros()
    x = problem.start.copy()
    m = e.copy()
    for t in count(1):
        e = e + problem.gradients(problem.everywhere(x), t)
        sent = compress(t, "gradient", e)
        e = e - sent
        g = problem.everywhere(mean(sent))
        p = updates_of(problem, m, problem.everywhere(x), g)
        x = x - mean(p)
        yield problem.everywhere(x), e


def powersgd(
    problem: Problem,
    shapes: Shapes,
    rank: int,
    first_q: Callable[[int, int, int], Array],
) -> Iterator[State]:
    """Tensor after tensor, with the error that a worker sees, and Gram and Schmidt's
    orthogonalisation.

    At first the Q of a tensor is first_q(its number, columns, rank).
    """
    x = problem.start.copy()
    m = 0 * problem.start
    e = problem.zeros()
    q: dict[int, Array] = {}
    for t in count(1):
        gradients = problem.gradients(problem.everywhere(x), t)
        g = mean(gradients)
        for number, here in enumerate(slices_of(shapes)):
            shape = shapes[number]
            if len(shape) < 2:
                continue
            rows = shape[0]
            columns = math.prod(shape[1:])
            if number not in q:
                q[number] = first_q(number, columns, min(rank, rows, columns))
            fed_back = gradients[:, here] + e[:, here]
            matrices = fed_back.reshape(-1, rows, columns)
            p = gram_schmidt(mean(matrices @ q[number]))
            own_q = [matrix.T @ p for matrix in matrices]
            q[number] = mean(own_q)
            g[here] = (p @ q[number].T).reshape(-1)
            for i, own in enumerate(own_q):
                rest = matrices[i] - p @ own.T
                e[i, here] = rest.reshape(-1)
        g = g + problem.decay * x
        m = problem.beta * m + g
        x = x - problem.eta * (problem.beta * m + g)
        yield problem.everywhere(x), e.copy()


def gram_schmidt(matrix: Array) -> Array:
    """Column after column, made orthogonal to those before, twice, and of length 1."""
    done: list[Array] = []
    for column in matrix.T:
        for _ in range(2):
            along = np.zeros_like(column)
            for other in done:
                along = along + np.dot(other, column) * other
            column = column - along
        done.append(column / np.linalg.norm(column))
    return np.stack(done, axis=1)


def local_sgd(
    problem: Problem, interval: int, moment_intervals: Sequence[int] = ()
) -> Iterator[State]:
    """Where every so many steps AdamW's first and second moments are averaged too, it is Local Adam
    or DES-LOC."""
    x = problem.everywhere(problem.start)
    m = problem.zeros()
    for t in count(1):
        x = x - updates(problem, m, x, t)
        averaged = [x]
        if moment_intervals:
            assert problem.adam is not None
            averaged += [problem.adam.m, problem.adam.v]
        intervals = [interval, *moment_intervals]
        for period, vectors in zip(intervals, averaged, strict=True):
            if t % period == 0:
                vectors[:] = mean(vectors)
        yield x.copy(), []


def noloco(
    problem: Problem,
    interval: int,
    groups: Callable[[int], list[list[int]]],
    outer_lr: float,
    outer_momentum: float,
) -> Iterator[State]:
    """As the release has it: in a group both the anchors and what they moved by are averaged."""
    phi = problem.everywhere(problem.start)
    delta = problem.zeros()
    x = phi.copy()
    m = 0 * phi
    momentum = 0 * phi
    for t in count(1):
        x = x - updates(problem, m, x, t)
        if t % interval == 0:
            delta = x - phi
            for group in groups(t):
                mean_phi = mean(phi[group])
                mean_delta = mean(delta[group])
                for i in group:
                    momentum[i] = (
                        outer_momentum * momentum[i]
                        + outer_lr * mean_delta
                        + outer_lr * (mean_phi - phi[i])
                    )
                    phi[i] = phi[i] + momentum[i]
            x = phi.copy()
        yield x, []


def qsparse_local_sgd(
    problem: Problem,
    compress: Compress,
    interval: int,
    outer_lr: float = 1.0,
    error_decay: float = 1.0,
) -> Iterator[State]:
    """With an outer rate and an error that decays it is SparseLoCo."""
    anchor = problem.start.copy()
    y = problem.everywhere(problem.start)
    m = problem.zeros()
    e = problem.zeros()
    for t in count(1):
        y = y - updates(problem, m, y, t)
        if t % interval == 0:
            e = error_decay * e + anchor - y
            sent = compress(t, "model", e)
            e = e - sent
            anchor = anchor - outer_lr * mean(sent)
            y = problem.everywhere(anchor)
        yield y, e


def sparse_loco_with_alpha_twice(
    problem: Problem, compress: Compress, interval: int, alpha: float, beta: float
) -> Iterator[State]:
    """The authors' releases: alpha times what a worker moved by enters the error, and the mean is
    applied alpha times.

    Source: tplr-y/CCLoco, src/tplr/ccloco.py, step; the mean is over all workers, as in the paper.
    """
    x = problem.start.copy()
    inner = problem.everywhere(problem.start)
    m = problem.zeros()
    e = problem.zeros()
    for t in count(1):
        inner = inner - updates(problem, m, inner, t)
        if t % interval == 0:
            e = beta * e + alpha * (x - inner)
            sent = compress(t, "model", e)
            e = e - sent
            x = x - alpha * mean(sent)
            inner = problem.everywhere(x)
        yield inner, e / alpha


def streaming_diloco(
    problem: Problem,
    interval: int,
    num_fragments: int,
    delay: int,
    outer_lr: float,
    outer_momentum: float,
    merge: float,
    send_gradients: bool = False,
    compress: Compress | None = None,
) -> Iterator[State]:
    """Each fragment is sent in its own steps, and a message waits in a queue for the step at which
    it arrives.

    Fragment f has the coordinates from f d / F to (f + 1) d / F, both rounded down. DiLoCo has no
    delay and no merge. What `compress` leaves out of a message goes with the next one of the
    fragment.
    """
    theta = problem.start.copy()
    velocity = 0 * problem.start
    d = len(problem.start)
    x = problem.everywhere(theta)
    m = problem.zeros()
    e = problem.zeros()
    under_way: dict[tuple[int, int], Array] = {}
    for t in count(1):
        p = updates(problem, m, x, t)
        if send_gradients:
            p = problem.everywhere(mean(p))
        x = x - p
        for f in range(num_fragments):
            first = f * d // num_fragments
            end = (f + 1) * d // num_fragments
            here = slice(first, end)
            offset = (f + 1) * (interval // num_fragments)
            if t % interval == offset % interval:
                sent = message = theta[here] - x[:, here] + e[:, here]
                if compress is not None:
                    sent = compress(t, "model", message)
                    e[:, here] = message - sent
                under_way[t + delay, f] = mean(sent)
            if (t, f) in under_way:
                gradient = under_way.pop((t, f))
                velocity[here] = outer_momentum * velocity[here] + gradient
                direction = gradient + outer_momentum * velocity[here]
                theta[here] = theta[here] - outer_lr * direction
                x[:, here] = merge * x[:, here] + (1 - merge) * theta[here]
        yield x.copy(), [] if compress is None else e.copy()


def ef21_sgdm(problem: Problem, compress: Compress) -> Iterator[State]:
    """With g_i as h_i and eta as a = 1 - beta; the first v_i is the first gradient, and is sent in
    full."""
    a = 1 - problem.beta
    x = problem.start.copy()
    h = 0 * problem.start
    for t in count(1):
        g = problem.gradients(problem.everywhere(x), t) + problem.decay * x
        if t == 1:
            v = g
            own = problem.zeros()
            sent = everything(t, "gradient", g)
        else:
            v = (1 - a) * v + a * g
            sent = compress(t, "gradient", v - own)
        own = own + sent
        h = h + mean(sent)
        x = x - problem.eta * h
        yield problem.everywhere(x), []


def ef21(problem: Problem, compress: Compress) -> Iterator[State]:
    """EF21: g_i <- g_i + C(gradient - g_i); x <- x - gamma mean(g). No momentum; the first gradient
    is sent in full."""
    x = problem.start.copy()
    estimates = problem.zeros()
    for t in count(1):
        gradients = problem.gradients(problem.everywhere(x), t) + problem.decay * x
        changes = gradients - estimates
        sent = changes if t == 1 else compress(t, "gradient", changes)
        estimates = estimates + sent
        x = x - problem.eta * mean(estimates)
        yield problem.everywhere(x), []


def sparta(problem: Problem, mask: Mask) -> Iterator[State]:
    """Sparse parameter averaging: after each local step the parameters that the mask draws become
    their averages."""
    x = problem.everywhere(problem.start)
    m = problem.zeros()
    for t in count(1):
        x = x - updates(problem, m, x, t)
        x = averaged_where(x, mask(t, "error"))
        yield x, []


def cser(
    problem: Problem, c2: Compress, c1: Compress, interval: int
) -> Iterator[State]:
    x = problem.everywhere(problem.start)
    m = problem.zeros()
    e = problem.zeros()
    for t in count(1):
        p, r = psync(updates(problem, m, x, t), c2, t, "gradient")
        x = x - p
        e = e - r
        if t % interval == 0:
            synchronised, s = psync(e, c1, t, "error")
            x = x - e + synchronised
            e = s
        yield x, e


def cser_released(
    problem: Problem,
    mask2: Mask,
    mask1: Mask,
    interval: int,
    average_parameters: bool,
    skip_gradient_at_reset: bool,
    decay_in_momentum_only: bool,
) -> Iterator[State]:
    x = problem.everywhere(problem.start)
    m = problem.zeros()
    step_of = released_updates if decay_in_momentum_only else updates
    for t in count(1):
        reset = t % interval == 0
        p = step_of(problem, m, x, t)
        gradient_stage = not (reset and skip_gradient_at_reset)
        if gradient_stage and not average_parameters:
            p, _ = psync(p, masked(mask2), t, "gradient")
        x = x - p
        if gradient_stage and average_parameters:
            x = averaged_where(x, mask2(t, "gradient"))
        if reset:
            x = averaged_where(x, mask1(t, "error"))
        yield x, []


def dpsgd(
    problem: Problem, weights: Callable[[int], Array], combine_while_adapt: bool
) -> Iterator[State]:
    """`weights(t)` is W of step t, counted from 1."""
    x = problem.everywhere(problem.start)
    m = problem.zeros()
    for t in count(1):
        p = updates(problem, m, x, t)
        w = weights(t)
        x = mixed(w, x) - p if combine_while_adapt else mixed(w, x - p)
        yield x, []


def choco_sgd(
    problem: Problem, w: Array, compress: Compress, gamma: float
) -> Iterator[State]:
    """Each worker holds xhat_j of every neighbour, where the module holds their weighted sum."""
    x = problem.everywhere(problem.start)
    m = problem.zeros()
    xhat = problem.everywhere(problem.start)
    for t in count(1):
        half = x - updates(problem, m, x, t)
        sent = compress(t, "model", half - xhat)
        xhat = xhat + sent
        x = consensus_step(w, gamma, half, xhat)
        yield x, []


def deep_squeeze(
    problem: Problem, weights: Callable[[int], Array], compress: Compress, gamma: float
) -> Iterator[State]:
    x = problem.everywhere(problem.start)
    m = problem.zeros()
    e = problem.zeros()
    for t in count(1):
        half = x - updates(problem, m, x, t)
        v = half + e
        sent = compress(t, "model", v)
        e = v - sent
        x = consensus_step(weights(t), gamma, half, sent)
        yield x, e


def mixed(w: Array, v: Vectors) -> Vectors:
    """sum_j w_ij v_j."""
    result = np.zeros_like(v)
    for i in range(len(v)):
        for j in range(len(v)):
            result[i] += w[i, j] * v[j]
    return result


def consensus_step(w: Array, gamma: float, x: Vectors, v: Vectors) -> Vectors:
    """x_i + gamma sum_j (w_ij - delta_ij) v_j."""
    return x + gamma * mixed(w - np.eye(len(v)), v)


def circulant(n: int, distances: Sequence[int]) -> Array:
    """Worker i takes the messages of those so many before it, and has its own, all with equal
    weight."""
    w = np.eye(n)
    for i in range(n):
        for distance in distances:
            w[i, i - distance] = 1
    return w / np.sum(w[0])


def ring(n: int, step: int) -> Array:
    return circulant(n, [1, n - 1])


def exponential(n: int, step: int) -> Array:
    """For n a power of two."""
    distances = [2**k for k in range(int(np.log2(n)))]
    return circulant(n, distances)


def one_peer(n: int, step: int) -> Array:
    """For n a power of two: the distances of `exponential` in turn."""
    k = (step - 1) % int(np.log2(n))
    return circulant(n, [2**k])


def complete(n: int, step: int) -> Array:
    return circulant(n, range(n))


WEIGHTS: dict[str, Callable[[int, int], Array]] = {
    "ring": ring,
    "exponential": exponential,
    "one_peer": one_peer,
    "complete": complete,
}
"""W of n workers at a step, counted from 1."""


def averaged_where(x: Vectors, mask: NDArray[np.bool_]) -> Vectors:
    return np.where(mask, mean(x), x)


def masked(mask: Mask) -> Compress:
    """A sparsifier whose support all workers share."""

    def compress(step: int, purpose: str, v: Vectors) -> Vectors:
        return np.where(mask(step, purpose), v, 0.0)

    return compress


def nothing(step: int, purpose: str, v: Vectors) -> Vectors:
    return 0 * v


def everything(step: int, purpose: str, v: Vectors) -> Vectors:
    return v.copy()


def single(v: Array) -> Array:
    """What is left of numbers that travel in 32 bits."""
    return v.astype(np.float32).astype(np.float64)


def for_each_worker(one: Callable[[Array], Array]) -> Compress:
    """What compresses each worker's vector by itself."""

    def compress(step: int, purpose: str, v: Vectors) -> Vectors:
        return np.array([one(vi) for vi in v])

    return compress


def largest(v: Array, k: int) -> NDArray[np.int_]:
    """The places of the k numbers of largest magnitude, of equal ones the first."""
    order = np.argsort(-np.abs(v), kind="stable")
    return order[:k]


def top_k(k: int) -> Compress:
    """The k coordinates of largest magnitude, each worker its own."""

    def one(v: Array) -> Array:
        kept = largest(v, k)
        result = np.zeros_like(v)
        result[kept] = single(v[kept])
        return result

    return for_each_worker(one)


def quantised_blocks(bits: int, size: int) -> Compress:
    """A block becomes its signs (zero's is +) times its mean magnitude, or the nearest of
    2^bits - 1 multiples of a scale."""

    def block(part: Array) -> Array:
        magnitudes = np.abs(part)
        if bits == 1:
            signs = np.where(part >= 0, 1.0, -1.0)
            return signs * single(np.mean(magnitudes, keepdims=True))
        largest_multiple = 2 ** (bits - 1) - 1
        scale = single(np.max(magnitudes, keepdims=True) / largest_multiple)
        divisor = np.where(scale > 0, scale, 1.0)
        return scale * np.rint(part / divisor)

    def one(v: Array) -> Array:
        return np.concatenate([block(part) for part in parts(v, size)])

    return for_each_worker(one)


def parts(v: Array, size: int) -> Iterator[Array]:
    """Views of so many numbers each; the last may be shorter."""
    for start in range(0, len(v), size):
        yield v[start : start + size]


def in_two_stages(compress: Compress, size: int) -> Compress:
    """What is sent is averaged in blocks, and compressed again; who owns a block counts what that
    adds as its own."""

    def both(step: int, purpose: str, v: Vectors) -> Vectors:
        sent = compress(step, purpose, v)
        mean = sent.mean(axis=0)
        (again,) = compress(step, purpose, mean[None])
        added = again - mean
        num_workers, numel = v.shape
        num_blocks = math.ceil(numel / size)
        for owner in range(num_workers):
            first_block = owner * num_blocks // num_workers
            end_block = (owner + 1) * num_blocks // num_workers
            own = slice(first_block * size, end_block * size)
            sent[owner, own] += num_workers * added[own]
        return sent

    return both


def qsgd(levels: int, bucket: int, noise: Callable[[int, str, int], Array]) -> Compress:
    """Each v_j becomes ||v|| l / levels, l being levels v_j / ||v|| rounded down or up at random,
    per bucket.

    `noise(step, purpose, worker)` has one uniform number of [0, 1) per coordinate.
    """

    def rounded(part: Array, uniform: Array) -> Array:
        norm = single(np.sqrt(np.sum(part**2, keepdims=True)))
        if norm == 0:
            return np.zeros_like(part)
        exact = levels * part / norm
        low = np.floor(exact)
        goes_up = uniform >= 1 - (exact - low)
        level = np.where(goes_up, low + 1, low)
        return norm * np.clip(level, -levels, levels) / levels

    def compress(step: int, purpose: str, v: Vectors) -> Vectors:
        result = np.zeros_like(v)
        for i, vi in enumerate(v):
            uniform = noise(step, purpose, i)
            buckets = zip(parts(vi, bucket), parts(uniform, bucket), strict=True)
            result[i] = np.concatenate([rounded(*each) for each in buckets])
        return result

    return compress


def chunk_top_k(kept: int, chunk: int, bits: int) -> Compress:
    """The `kept` largest of each chunk stay; together they fall into 2^bits bins, and become the
    means of their bins.

    The bins are 6 sigma / 2^bits wide; number 2^bits / 2, counted from 0, has the mean of all in
    its middle. With 32 bits they stay what they are.
    """

    def in_bins(values: Array) -> Array:
        bins = 2**bits
        width = 6 * np.std(values, ddof=1) / bins
        edges = np.mean(values) + (np.arange(1, bins) - bins / 2 - 0.5) * width
        numbers = np.searchsorted(edges, values, side="right")
        result = np.zeros_like(values)
        for number in np.unique(numbers):
            in_bin = numbers == number
            result[in_bin] = np.mean(values[in_bin])
        return result

    def one(v: Array) -> Array:
        chunks = enumerate(parts(v, chunk))
        sent = [number * chunk + largest(part, kept) for number, part in chunks]
        places = np.concatenate(sent)
        values = v[places]
        if bits < 32 and len(values) > 1:
            values = in_bins(values)
        result = np.zeros_like(v)
        result[places] = single(values)
        return result

    return for_each_worker(one)
