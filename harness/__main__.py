"""Starts the command line by `python -m harness`, in a checkout and installed.

The entry point is above the harness, so it is named here and not imported.
"""

from importlib import import_module

if __name__ == "__main__":
    import_module("cser_bench.__main__").command_line()
