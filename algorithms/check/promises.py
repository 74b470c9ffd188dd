"""What every method promises, each as a sentence with the check that holds a method to it.

A check takes a `Subject`, trains it for some steps on a problem of 51 parameters, and raises
`BrokenError` with a sentence where the promise is not kept, or `DoesNotApplyError`. Checks are written
from the definitions of what they check.
"""

from collections.abc import Callable

from cser_bench.algorithms.check.description import (
    describes_itself,
    talks_through_collectives,
)
from cser_bench.algorithms.check.state import memory_is_state, repeats, resumes
from cser_bench.algorithms.check.subject import Subject
from cser_bench.algorithms.check.traffic import (
    sends_what_it_says,
    short_messages_are_half,
)
from cser_bench.algorithms.check.training import (
    begins_where_it_is_told,
    frozen_stays,
    is_sgd,
)
from cser_bench.algorithms.check.workers import (
    agrees_when_it_says,
    processes_are_rows,
    rows_are_workers,
    workers_are_apart,
)

Check = Callable[[Subject], None]

PROMISES: dict[str, Check] = {
    "says what it is, and what it is to be tried with": describes_itself,
    "talks through its collectives alone": talks_through_collectives,
    "begins at the parameters that it is given": begins_where_it_is_told,
    "without compression it is SGD on the mean gradient": is_sgd,
    "sends the bits that it says beforehand, and counts all that it sends": sends_what_it_says,
    "messages of 16 bits have half the bits": short_messages_are_half,
    "goes on from a saved state to the bit": resumes,
    "its memory is the state that a checkpoint holds": memory_is_state,
    "workers agree after the steps that it says": agrees_when_it_says,
    "a frozen parameter stays as it is": frozen_stays,
    "draws nothing from global generators: a run that is repeated is the same to the bit": repeats,
    "workers that are rows of one process do what workers of their own do, to the bit": rows_are_workers,
    "no worker knows of another but by messages": workers_are_apart,
    "workers that are processes do the same, but for rounding, and send the same": processes_are_rows,
}
"""By their sentence, in the order in which they are checked: the last one takes processes."""
