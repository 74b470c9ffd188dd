"""What type checkers see: `__init__.py` loads the same names when they are asked for."""

from cser_bench.algorithms import *  # noqa: F403

__version__: str
