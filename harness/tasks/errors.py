"""Errors that a task raises about its data."""


class DataError(ValueError):
    """Data that cannot be used: the message says which file, what is wrong and what to do."""
