"""A restart without a part of the state: what a run loses whose checkpoint lacks it, or whose worker is replaced."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from algorithms import DistributedOptimizer
from harness.rows import RestartSpec
from harness.spec import RunConfig, SpecError
from harness.train.build import build_optimizer

PARAMETERS = "parameters"


def check_restart(restart: RestartSpec, optimizer: DistributedOptimizer, num_steps: int, num_workers: int) -> None:
    """Raises SpecError where the method has no such state, or where nobody would lose it."""
    own, common = state_of(optimizer)
    method, known = optimizer.name, [*own, *common]
    unknown = [name for name in restart.without if name not in known]
    if unknown:
        raise SpecError(f"{method}: there is no state {unknown[0]!r} to restart without; it has {', '.join(known)}")
    if not 0 < round(restart.at * num_steps) < num_steps:
        raise SpecError(f"a restart at {restart.at:g} of {num_steps} steps is at an end of the run; give another share")
    if restart.worker is None:
        return
    if restart.worker >= num_workers:
        raise SpecError(f"there is no worker {restart.worker} to restart; ranks go from 0 to {num_workers - 1}")
    shared = [name for name in restart.without if name in common]
    if shared:
        raise SpecError(f"{method}: all workers hold {shared[0]!r} in common, so none can lose it alone")


def state_of(optimizer: DistributedOptimizer) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Vectors of the parameters' shape by name, themselves among them; and what all workers have in common."""
    parameters = optimizer.flat.parameters
    saved = {PARAMETERS: parameters, **optimizer.state_dict()["flat"]}
    state = {name: value for name, value in saved.items() if isinstance(value, Tensor)}
    own = {name: value for name, value in state.items() if value.shape == parameters.shape}
    return own, {name: value for name, value in state.items() if name not in own}


def restart_if_due(config: RunConfig, optimizer: DistributedOptimizer, step: int, num_steps: int) -> None:
    """Give the optimiser, for what is lost, what one holds that is made anew on the present parameters.

    All workers must call it together, before each step, with the number of steps that were taken and that of the whole
    run. As at every start, worker 0's parameters go to all, and count as control. The number of steps is kept, and so
    is what comes of it: the schedule, and which blocks are drawn.
    """
    restart = config.restart
    if restart is None or step != round(restart.at * num_steps):
        return
    copies = nn.ParameterList(nn.Parameter(each.detach().clone()) for each in optimizer.flat.tensors)
    own, common = state_of(build_optimizer(config, copies, optimizer.collectives, num_steps))
    lost = {name: value for name, value in (own | common).items() if name in restart.without}
    if restart.worker is not None:
        held = state_of(optimizer)[0]
        lost = {name: _of_worker(restart.worker, optimizer, held[name], value) for name, value in lost.items()}
    state = optimizer.state_dict()
    optimizer.load_state_dict(state | {"flat": state["flat"] | lost})


def _of_worker(rank: int, optimizer: DistributedOptimizer, held: Tensor, new: Tensor) -> Tensor:
    """What the workers' new vectors are where only one has lost its own."""
    own_ranks = torch.tensor(optimizer.collectives.own_ranks, device=held.device)
    return torch.where((own_ranks == rank).unsqueeze(1), new, held)
