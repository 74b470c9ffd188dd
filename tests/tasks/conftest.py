"""Settings that the tests of the tasks share."""

from __future__ import annotations

import torch

# Small tensors: more threads would wait for each other.
torch.set_num_threads(1)
