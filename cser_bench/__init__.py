"""The one import name of this project; its packages are the folders at the top of the repository,
linked here.

What `algorithms` has can be imported from here too: `from cser_bench import MCSER`.
"""

from pathlib import Path

__version__ = "1.0.0"

_HERE = Path(__file__).absolute().parent
_FOLDERS = ("algorithms", "harness", "report", "slurm")

# A checkout without symbolic links, as of an unpacked ZIP, has text files in their place.
if not all((_HERE / folder).is_dir() for folder in _FOLDERS):
    __path__.append(str(_HERE.parent))


def __getattr__(name: str) -> object:
    """Return what `algorithms` has of this name; it loads torch, so not before it is asked for."""
    from importlib import import_module

    # Folders are asked for before they are imported.
    if name not in _FOLDERS and not name.startswith("_"):
        algorithms = import_module("cser_bench.algorithms")
        if name in algorithms.__all__:
            return getattr(algorithms, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
