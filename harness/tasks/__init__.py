"""Tasks: what a run trains on, a data set in each module that has a `TASK`."""


class DataError(ValueError):
    """Data that cannot be used: the message says which file, what is wrong and what to do."""

    exit_code = 1
