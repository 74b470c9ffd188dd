"""Settings that the tests of the algorithms share."""

import torch
from hypothesis import settings

# The workers are threads already; and one thread per operation keeps every sum in one order.
torch.set_num_threads(1)

settings.register_profile(
    "algorithms", deadline=None, derandomize=True, max_examples=60
)
settings.load_profile("algorithms")
