"""What is checked before a step and between steps: workers against each other, and the script."""

from collections.abc import Callable, Mapping, Sequence

from torch import nn

from cser_bench.algorithms.core.collectives import Collectives
from cser_bench.algorithms.core.first_step import FirstStep
from cser_bench.algorithms.core.flat import FlatBuffers
from cser_bench.algorithms.core.step_watch import StepWatch
from cser_bench.algorithms.core.write_watch import WriteWatch


class StepChecks:
    """The first step's checks in full, and later ones that cost next to nothing.

    Make it once all workers hold the same parameters.

    Args:
        method: its name.
        flats: parameters and gradients of each dtype.
        averaged: whether the method's own backward pass averages gradients.
    """

    def __init__(
        self,
        method: str,
        flats: Sequence[FlatBuffers],
        collectives: Collectives,
        averaged: bool,
    ) -> None:
        self._tensors = [tensor for flat in flats for tensor in flat.tensors]
        self._first_step: FirstStep | None = FirstStep(flats, collectives, averaged)
        """None once the first step has been checked."""
        self._step_watch = StepWatch(collectives)
        self._write_watch = WriteWatch(method)

    @property
    def is_at_start(self) -> bool:
        """Whether no step was done since these checks were made, nor a state loaded."""
        return self._first_step is not None and not self._first_step.was_loaded

    def before_step(
        self,
        model: nn.Module | None,
        may_differ: bool,
        num_steps: int,
        fields_now: Callable[[], Mapping[str, object]],
    ) -> bool:
        """Compare with the other workers what the next step rests on.

        Return whether parameters were changed between the making of the optimiser and the first
        step; then all workers must begin anew.

        Args:
            may_differ: whether workers' parameters may differ, once a state was loaded.
            fields_now: returns what `in_step` gives.

        Raises:
            RuntimeError, ValueError: as `FirstStep.check` and `StepWatch.look_at` say.
        """
        is_changed = False
        if self._first_step is not None:
            is_changed = self._first_step.check(
                model, may_differ, num_steps, fields_now()
            )
            # Its hooks have seen what they were for, and would slow every backward pass.
            self._first_step.close()
            self._first_step = None
        # Before the exchange below: it warns of this worker's script, and waits for nobody.
        self._write_watch.look_at(self._tensors, num_steps)
        self._step_watch.look_at(fields_now)
        return is_changed

    def step_done(self) -> None:
        """Note that a step has written the parameters; what else writes them is warned of."""
        self._write_watch.note(self._tensors)

    def parameters_replaced(self) -> None:
        """Expect other parameters than the last step left, as all workers begin anew."""
        self._write_watch.forget()

    def state_loaded(self) -> None:
        """Expect a state's parameters, in which workers may differ."""
        self._write_watch.forget()
        if self._first_step is not None:
            self._first_step.was_loaded = True

    def close(self) -> None:
        """Remove the hooks, which would keep the parameters' vectors alive."""
        if self._first_step is not None:
            self._first_step.close()
