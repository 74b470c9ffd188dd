"""The one import name of this project; its packages are the folders at the top of the repository,
linked here."""

from pathlib import Path

_HERE = Path(__file__).absolute().parent
_FOLDERS = ("algorithms", "harness", "report", "slurm")

# A checkout without symbolic links, as of an unpacked ZIP, has text files in their place.
if not all((_HERE / folder).is_dir() for folder in _FOLDERS):
    __path__.append(str(_HERE.parent))
