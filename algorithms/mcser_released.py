"""M-CSER as released: `cser_released` on the Nesterov update, which is what the published numbers were made with.

Source and switches: see `cser_released.py`. Cost: the same.
"""

from algorithms.cser_released import CSERReleased


class MCSERReleased(CSERReleased):
    """CSERReleased whose momentum is 0.9 by default, and must not be 0."""

    name = "mcser_released"
    without_momentum = CSERReleased.name
