"""What happens in the middle of a run.

Workers lose a part of their state, or everything is sent from then on.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from cser_bench.algorithms import Collectives, DistributedOptimizer, Purpose, Traffic
from cser_bench.harness.spec.errors import SpecError
from cser_bench.harness.spec.run import RestartSpec, RunConfig
from cser_bench.harness.train.build import build_optimizer

PARAMETERS = "parameters"
"""What a restart calls them, in whose place worker 0's are taken."""


def check_restart(
    restart: RestartSpec,
    optimizer: DistributedOptimizer,
    num_steps: int,
    num_workers: int,
) -> None:
    """Raise SpecError where the method has no such state, or where nobody would lose it."""
    own, common = state_of(optimizer)
    method = optimizer.name
    parts = [*own, *common]
    unknown = [name for name in restart.without if name not in parts]
    if unknown:
        raise SpecError(
            f"{method}: there is no state {unknown[0]!r} to restart without; it has "
            f"{', '.join(parts)}"
        )
    if not 0 < round(restart.at * num_steps) < num_steps:
        raise SpecError(
            f"a restart at {restart.at:g} of {num_steps} steps is at an end of the run; give "
            "another share"
        )
    if restart.worker is None:
        return
    if restart.worker >= num_workers:
        raise SpecError(
            f"there is no worker {restart.worker} to restart; ranks go from 0 to {num_workers - 1}"
        )
    shared = [name for name in restart.without if name in common]
    if shared:
        raise SpecError(
            f"{method}: all workers hold {shared[0]!r} in common, so none can lose it alone"
        )


def state_of(
    optimizer: DistributedOptimizer,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return vectors of the parameters' shape by name, and what all workers have in common.

    The parameters themselves are among the former.
    """
    parameters = optimizer.flat.parameters
    saved = {
        PARAMETERS: parameters,
        **optimizer.state_dict()["param_groups"][0]["flat"],
    }
    state = {name: value for name, value in saved.items() if isinstance(value, Tensor)}
    # (local workers, d): a row is a worker's own. What has another shape is alike on all of them.
    own = {
        name: value for name, value in state.items() if value.shape == parameters.shape
    }
    common = {name: value for name, value in state.items() if name not in own}
    return own, common


def tail_of(
    config: RunConfig,
    tensors: Iterable[Tensor],
    collectives: Collectives,
    num_steps: int,
) -> DistributedOptimizer:
    """Return the optimiser of a synchronous tail.

    It has the same local step, and sends every gradient whole.
    """
    plain = config.with_everything_sent()
    return build_optimizer(plain, nn.ParameterList(tensors), collectives, num_steps)


def traffic_before_tail(
    config: RunConfig, optimizer: DistributedOptimizer, num_steps: int
) -> Traffic:
    """Return the closed form of what a method sends until its synchronous tail.

    The average that the tail starts from is included.
    """
    assert config.restart is not None
    num_before = round(config.restart.at * num_steps)
    traffic = optimizer.expected_traffic(num_before)
    if not optimizer.agree_after(num_before):
        # The parameters' own type: this average goes uncompressed, whatever the method sends.
        bits_per_number = 8 * optimizer.flat.parameters.element_size()
        traffic.add(Purpose.MODEL, bits_per_number * optimizer.flat.layout.numel)
    return traffic


def planned_traffic(
    config: RunConfig, optimizer: DistributedOptimizer, num_steps: int
) -> Traffic:
    """Return the closed form of what a worker sends in the whole run.

    `optimizer` is on the meta device.
    """
    if config.restart is None or not config.restart.everything_sent:
        return optimizer.expected_traffic(num_steps)
    tail = tail_of(config, optimizer.flat.tensors, optimizer.collectives, num_steps)
    # The tail's optimiser counts its own steps from 0.
    num_tail = num_steps - round(config.restart.at * num_steps)
    return traffic_before_tail(config, optimizer, num_steps) + tail.expected_traffic(
        num_tail
    )


def lose_state(
    config: RunConfig,
    restart: RestartSpec,
    optimizer: DistributedOptimizer,
    num_steps: int,
) -> None:
    """Take a part of the optimiser's state away, as `restart` says.

    In its place comes what an optimiser holds that is made anew on the present parameters.

    All workers must call it together, with the number of steps of the whole run. As at every start,
    worker 0's parameters go to all, and count as control. The number of steps is kept, and so is
    what comes of it: the schedule, and which blocks are drawn.
    """
    # Copies, as making an optimiser gives its parameters worker 0's values in place.
    copies = nn.ParameterList(
        nn.Parameter(tensor.detach().clone()) for tensor in optimizer.flat.tensors
    )
    anew = build_optimizer(config, copies, optimizer.collectives, num_steps)
    own, common = state_of(anew)
    lost = {
        name: value for name, value in (own | common).items() if name in restart.without
    }
    if restart.worker is not None:
        held, _ = state_of(optimizer)
        lost = {
            name: _of_worker(restart.worker, optimizer, held[name], value)
            for name, value in lost.items()
        }
    state = optimizer.state_dict()
    # Vectors over all parameters are saved with the first group.
    state["param_groups"][0]["flat"] |= lost
    optimizer.load_state_dict(state)


def _of_worker(
    rank: int, optimizer: DistributedOptimizer, held: Tensor, new: Tensor
) -> Tensor:
    """Return what the workers' new vectors are where only one has lost its own."""
    own_ranks = torch.tensor(optimizer.collectives.own_ranks, device=held.device)
    # (local workers, 1) against (local workers, d).
    return torch.where((own_ranks == rank).unsqueeze(1), new, held)
