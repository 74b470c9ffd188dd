"""The explorer: one HTML page of an experiment, which works offline and opens the runs behind any
number."""
