"""Timing: whole training steps of every method and baseline, by turns, on a network at hand, in their parts."""
