"""Local steps, a file each: what a worker does on its own.

Nothing lists them: `local_steps()` finds them by their names.
"""
