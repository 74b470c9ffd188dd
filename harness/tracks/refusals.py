"""What a method's source may not have: ways to talk that no one counts, by its syntax tree.

It is no sandbox. It catches what would be counted wrongly by mistake, and leaves the rest to
whoever reads the source and to steps by processes.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from cser_bench.algorithms import (
    Collectives,
    ProcessGroupCollectives,
    StackedCollectives,
)
from cser_bench.harness.tracks.errors import EntryError

MODULES = (
    "torch.distributed",
    "torch.multiprocessing",
    "cser_bench.algorithms.core.process_group",
    "cser_bench.harness",
    "cser_bench.report",
    "cser_bench.slurm",
    "harness",
    "report",
    "slurm",
    "multiprocessing",
    "socket",
    "subprocess",
    "ctypes",
    "mmap",
    "importlib",
    "gc",
    "inspect",
    "sys",
    "os",
)
"""Modules by which one worker could reach another past the count, or the run that it is scored by,
or reach such a module."""

BUILTINS = (
    "__import__",
    "eval",
    "exec",
    "compile",
    "open",
    "getattr",
    "globals",
    "vars",
)
"""Functions by which a source could do what its syntax tree does not show."""

ATTRIBUTES = {
    "distributed": "what torch.distributed sends is not counted",
    "_C": "what goes past torch's own names is not counted",
    "harness": "a method has no business with what scores it",
    "CONTROL": "control is no part of a method's count",
    "EVALUATION": "evaluation is no part of a method's count",
    "traffic": "the count is kept below the method",
    "twin": "the group's twin is kept below the method",
}
"""Attributes that no method needs, and why they are refused."""


def check_source(source: str, file: str) -> None:
    """Raise EntryError for a source that could send what is not counted.

    Args:
        file: what the message calls it.
    """
    try:
        # Parsed and not executed: an entry may come from anyone.
        tree = ast.parse(source)
    except SyntaxError as error:
        raise EntryError(
            f"{file} is no Python: {error.msg} (line {error.lineno})"
        ) from None
    for node in ast.walk(tree):
        # The first is enough: whoever mends it runs the check again.
        for what, why in _refused(node):
            line_number = getattr(node, "lineno", 0)
            raise EntryError(
                f"{file}, line {line_number}, has {what}: {why}; a method talks by `replica` and its "
                "collectives alone"
            )


def _refused(node: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield what a node has that is refused, and why."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        for name in _imported(node):
            if _is_refused_module(name):
                yield (
                    name,
                    "it could send what is not counted, or change what scores it",
                )
    elif isinstance(node, ast.Attribute):
        if node.attr in ATTRIBUTES:
            yield ast.unparse(node), ATTRIBUTES[node.attr]
        elif node.attr in _private_names():
            yield ast.unparse(node), "it sends below the count"
    elif isinstance(node, ast.Name) and node.id in BUILTINS:
        yield node.id, "it hides what a method does"
    elif isinstance(node, ast.Call):
        # Purpose("control") is Purpose.CONTROL.
        values = [item.value for item in node.args if isinstance(item, ast.Constant)]
        if "control" in values or "evaluation" in values:
            yield (
                ast.unparse(node),
                "control and evaluation are no part of a method's count",
            )


def _imported(node: ast.Import | ast.ImportFrom) -> list[str]:
    """Return the full names that a statement imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [f"{node.module}.{alias.name}" for alias in node.names]


def _is_refused_module(name: str) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in MODULES)


def _private_names() -> set[str]:
    """Return the names of the collectives' inner functions, which send and do not count."""
    names = set()
    for kind in (Collectives, StackedCollectives, ProcessGroupCollectives):
        # `dir` lists what is inherited, too.
        for name in dir(kind):
            if name.startswith("_") and not name.startswith("__"):
                names.add(name)
    return names
