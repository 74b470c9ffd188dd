"""The report of accuracy experiments."""
