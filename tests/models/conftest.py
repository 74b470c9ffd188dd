"""Settings that the tests of the models share."""

from __future__ import annotations

import torch

# The networks here are small, and more threads would only take turns.
torch.set_num_threads(1)
