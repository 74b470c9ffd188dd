"""`MethodFacts`: what a method's class declares, and what its optimiser and replicas both read."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from cser_bench.algorithms.core.collectives import Collectives
from cser_bench.algorithms.core.settings import Setting
from cser_bench.algorithms.core.topology import Mixing


class MethodFacts:
    """A method's declarations, and the numbers that change while it trains."""

    name: ClassVar[str]
    """The method's name in specs."""
    averages_models: ClassVar[bool] = True
    """Whether the method's result is the workers' average; if not, it is each worker's own
    model."""
    averages_in_backward: ClassVar[bool] = False
    """Whether gradients are averaged already when a step begins."""
    workers_differ: ClassVar[bool] = True
    """Whether workers' parameters may differ after a step; then each worker's state holds its
    own."""
    state_is_common: ClassVar[bool] = False
    """Whether all workers have the same state, which then fits any number of workers."""
    without_momentum: ClassVar[str | None] = None
    """Name of the method that this one is without momentum, if there is one; then momentum must not
    be 0."""
    sgd_alone: ClassVar[str | None] = None
    """Why the method has no local step but SGD's, as the end of a sentence; None where it has
    others."""
    keeps_rounding: ClassVar[bool] = True
    """Whether what rounding takes from messages of 16 bits is sent later; if not, it is lost."""
    needs_contiguous: ClassVar[bool] = False
    """Whether parameters must be contiguous; if not, images may lie channels last."""
    nesterov: ClassVar[bool] = True
    """Whether the momentum is Nesterov's; if not, it is the heavy ball's with dampening, v <- beta
    v + (1 - beta) g."""
    traffic_follows_rate: ClassVar[bool] = False
    """Whether what is sent depends on the learning rate."""

    no_compression: ClassVar[Mapping[str, Any] | None]
    """Settings with which the method is SGD on the mean gradient; None if there are none."""
    tried_with: ClassVar[Mapping[str, Any]] = {}
    """Settings that `check` uses instead of its own compressors and intervals, and instead of those
    in `no_compression`."""
    formula: ClassVar[str]
    """Payload bits of one worker per step, as a text in d and the settings. R is the ratio of a
    sparsifier whose coordinates all workers draw alike; top-k sends places too, 64 d / R."""
    family: ClassVar[str] = "other"
    """Its group and colour in reports: "all sent", "bounds", "error reset", "error feedback",
    "local steps" or "neighbours"."""
    declared: ClassVar[Mapping[str, Setting]] = {}
    """Settings that the class annotates, by name."""

    drop_rest: bool = False
    """Whether what a compressor leaves out is lost; a setting of methods that can do both."""
    caution: str | None = None
    """A sentence on settings that are allowed but will go wrong; warned of, and printed in plans."""
    rounds: tuple[Mixing, ...] = ()
    """Mixings of steps 1, 2, ..., repeated in a cycle; empty if no setting is a topology."""
    schedule: Callable[[int], float] | None = None
    """Learning rate of the first group at each step, counted from 1; set where traffic depends on it and
    it is known in advance."""
    settings: dict[str, Any]
    """Settings as given, or their defaults."""
    collectives: Collectives
    seed: int
    local_step: str
    skip_nonfinite: bool
    param_groups: list[dict[str, Any]]
    num_steps: int
    """Number of steps done."""
