"""What every vocabulary of a text task begins with."""

PAD, BEGIN, END = 0, 1, 2
"""Ids of what fills up a batch's shorter sentences, and of what stands before and after each."""
NUM_SPECIAL = 3

IGNORED = -100
"""As a label: no token is expected there. PyTorch's losses know it by default."""
