"""The explorer: one HTML page of an experiment, which works offline and shows every run."""
