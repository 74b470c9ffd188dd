"""The trainers of the code released with CSER, line by line in NumPy, from that code alone.

Source: https://github.com/xcgoner/NeurIPS2020_CSER, commit 74a7af0. Trainers are in
gluon-cv/gluoncv/trainer, kernels in incubator-mxnet/src/operator; numbers in brackets are their
lines. x[i] are the weights of worker i's network, x_32[i] its master copy (`multi_precision`), all
of one type here: nothing is rounded.

`block(step, purpose)` is where the blocks lie that a step sends, of all tensors whose coin fell
right. A trainer goes on for ever.
"""

from collections.abc import Iterator
from itertools import count

from tests.algorithms.transcription import Mask, Problem, State, Vectors, mean


def nag(
    problem: Problem, weights: Vectors, momenta: Vectors, gradients: Vectors
) -> Vectors:
    """The weights after a step: NAG, whose direct term has no weight decay (optimizer_op-inl.h
    1093, 1167)."""
    # MXNet's NAG then has no momentum and steps as its SGD (394, 670)
    if problem.beta == 0:
        return (1 - problem.eta * problem.decay) * weights - problem.eta * gradients
    momenta[:] = problem.beta * momenta + gradients + problem.decay * weights
    return weights - problem.eta * (problem.beta * momenta + gradients)


def ef_sgd(problem: Problem, block: Mask) -> Iterator[State]:
    """efsgd_trainer_v1.py (84-140) and contrib/efsgd_pre-inl.h (136-158).

    Gradient and weight decay have momenta of their own, and the decay is applied at once by each
    worker.
    """
    x = problem.everywhere(problem.start)
    e = problem.zeros()
    m = problem.zeros()
    m_wd = problem.zeros()
    for t in count(1):
        g = problem.gradients(x, t)
        m = problem.beta * m + g
        g = g + problem.beta * m
        m_wd = problem.beta * m_wd + problem.decay * x
        x = x - problem.eta * (problem.beta * m_wd + problem.decay * x)
        e = e + problem.eta * g
        here = block(t, "gradient")
        x[:, here] -= mean(e[:, here])
        e[:, here] = 0
        yield x.copy(), e.copy()


def qsparse(
    problem: Problem, block: Mask, interval: int, multi_precision: bool
) -> Iterator[State]:
    """qsparse_local_sgd_trainer_v1.py (98-165).

    The step is from x_32, where there is one, but the gradient is of x: a synchronisation resets x
    wherever nothing was sent (123), and x_32 becomes x only where something was (147).
    """
    x = problem.everywhere(problem.start)
    x_32 = problem.everywhere(problem.start)
    m = problem.zeros()
    e = problem.zeros()
    cached = x.copy()
    for t in count(1):
        x_32 = nag(problem, x_32, m, problem.gradients(x, t))
        x = x_32.copy()
        if t % interval == 0:
            e = e + x - cached
            x = cached.copy()
            here = block(t, "model")
            x[:, here] += mean(e[:, here])
            e[:, here] = 0
            cached = x.copy()  # (102), at the beginning of the next step
            if multi_precision:
                x_32[:, here] = x[:, here]
            else:
                x_32 = x.copy()
        yield x.copy(), -e  # the paper's error has the other sign


def cser(
    problem: Problem, block_1: Mask, block_2: Mask, interval: int
) -> Iterator[State]:
    """ersgd2_trainer_v2.py (100-168): each `interval`-th step sends the second blocks in place of
    the first.

    CSEA, ersgd_trainer_v2.py (90-137), sends one kind of blocks at every step: these as the second,
    interval 1.
    """
    x = problem.everywhere(problem.start)
    m = problem.zeros()
    for t in count(1):
        x = nag(problem, x, m, problem.gradients(x, t))
        here = block_2(t, "error") if t % interval == 0 else block_1(t, "gradient")
        x[:, here] = mean(x[:, here])
        yield x.copy(), []


def cser_pl(problem: Problem, block: Mask, interval: int) -> Iterator[State]:
    """partial_local_sgd_trainer_v1.py (92-137)."""
    x = problem.everywhere(problem.start)
    m = problem.zeros()
    for t in count(1):
        x = nag(problem, x, m, problem.gradients(x, t))
        if t % interval == 0:
            here = block(t, "error")
            x[:, here] = mean(x[:, here])
        yield x.copy(), []
