"""Whether a script has written the parameters between two steps."""

from collections.abc import Sequence

from torch import Tensor

from cser_bench.algorithms.core.warn import warn_script


class WriteWatch:
    """Warns, once, where something other than the optimiser has written the parameters.

    Args:
        method: its name.
    """

    def __init__(self, method: str) -> None:
        self._method = method
        self._num_writes: int | None = None
        """Writes as of the end of the last step; None if unknown."""
        self._has_warned = False

    def note(self, parameters: Sequence[Tensor]) -> None:
        """Note how often the parameters have been written by now."""
        self._num_writes = _num_writes(parameters)

    def forget(self) -> None:
        """Expect other parameters than those of the last step, as after a state was loaded."""
        self._num_writes = None

    def look_at(self, parameters: Sequence[Tensor], num_steps: int) -> None:
        """Warn where parameters were written since they were last noted, after step `num_steps`."""
        if self._has_warned or self._num_writes in (None, _num_writes(parameters)):
            return
        self._has_warned = True
        warn_script(
            f"{self._method}: something other than this optimiser has written parameters after "
            f"step {num_steps}; where other weights were loaded, call optimizer.reanchor() on all "
            "workers, as what the method holds is of the former ones; where all workers change "
            "them alike, as by a clamp, nothing need be done"
        )


def _num_writes(parameters: Sequence[Tensor]) -> int:
    """Return how often a script has written parameters in place."""
    # The optimiser writes the flat vectors, which does not raise the versions of their views.
    # autograd counts versions, and has no public name for the count.
    return sum(tensor._version for tensor in parameters)
