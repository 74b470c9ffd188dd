"""Timing: full training steps of every method and baseline, by turns, on a network at hand, and what they consist of."""
