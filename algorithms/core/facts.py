"""What a method says of itself, and what it and its parameters' replicas both look at."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, dataclass_transform

from cser_bench.algorithms.core.collectives import Collectives
from cser_bench.algorithms.core.settings import LocalStepName, Setting, argument, fixed
from cser_bench.algorithms.core.topology import Mixing


@dataclass_transform(kw_only_default=True, field_specifiers=(fixed, argument))
class MethodFacts:
    """What the class of a method declares, and the numbers that change while it trains."""

    name: ClassVar[str]
    """What a spec calls the method."""
    averages_models: ClassVar[bool] = True
    """Whether the method's result is the workers' average; if not, it is each worker's own
    model."""
    averages_in_backward: ClassVar[bool] = False
    """Whether gradients are averaged already when a step begins."""
    workers_differ: ClassVar[bool] = True
    """Whether workers' parameters may differ after a step; then each worker's state holds its
    own."""
    state_is_common: ClassVar[bool] = False
    """Whether all workers' states are one and the same, and fit any number of workers."""
    without_momentum: ClassVar[str | None] = None
    """What the method is called without momentum, where that is another one: then the momentum must
    not be 0."""
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
    """Settings of its own with which the method is SGD on the mean gradient; None where no settings
    make it that."""
    tried_with: ClassVar[Mapping[str, Any]] = {}
    """Settings that checks try the method with: in place of the compressors and intervals that they
    would give, and of what `no_compression` has."""
    formula: ClassVar[str]
    """Payload bits of one worker per step, in words of d and the settings."""
    family: ClassVar[str] = "other"
    """What reports group and colour it by: "all sent", "bounds", "error reset", "error feedback",
    "local steps" or "neighbours"."""
    declared: ClassVar[Mapping[str, Setting]] = {}
    """The settings of its own, which the class annotates, by name."""

    drop_rest: bool = False
    """Whether what compressors leave out is lost; a setting of methods that can do both."""
    caution: str | None = None
    """What will go wrong with settings that are allowed, in a sentence: a warning, and a line of a
    plan."""
    rounds: tuple[Mixing, ...] = ()
    """The mixings of steps 1, 2, ..., after which they begin anew, where a setting is a
    topology."""
    schedule: Callable[[int], float] | None = None
    """The first group's learning rate at each step, counted from 1, where what is sent depends on
    it and it is known beforehand."""
    settings: dict[str, Any]
    """The settings of its own, as they were given or by default."""
    collectives: Collectives
    seed: int
    local_step: LocalStepName
    skip_nonfinite: bool
    param_groups: list[dict[str, Any]]
    num_steps: int
    """Steps that were done."""
