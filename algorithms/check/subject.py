"""What is checked: a method by its source, so that other processes can have it too."""

import ast
from dataclasses import dataclass
from pathlib import Path

from cser_bench.algorithms.core.method_file import MethodFileError, methods_in
from cser_bench.algorithms.core.optimizer import DistributedOptimizer


@dataclass(frozen=True)
class Subject:
    """A method of this name in a source text, which messages call by its file."""

    source: str
    file: str
    name: str

    @property
    def method(self) -> type[DistributedOptimizer]:
        """The method's class."""
        return methods_in(self.source, self.file)[self.name]


def subjects_in(path: Path) -> list[Subject]:
    """Return the methods that a file has.

    Raises MethodFileError: it cannot be read, does not import, or has none.
    """
    source = _source_of(path)
    return [Subject(source, path.name, name) for name in methods_in(source, path.name)]


def _source_of(path: Path) -> str:
    """Return a file's text.

    Raises MethodFileError: it cannot be read.
    """
    try:
        return path.read_text()
    except OSError as error:
        raise MethodFileError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise MethodFileError(f"{path} is no Python file: it is not UTF-8") from None


def lines_past_collectives(source: str) -> list[int]:
    """Return the lines of a source text that name `torch.distributed` or import it."""
    lines: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            # As importlib has it; a docstring that speaks of it is no such name.
            names = [node.value] if node.value.startswith("torch.distributed") else []
        for name in names:
            if name == "torch.distributed" or name.startswith("torch.distributed."):
                lines.add(getattr(node, "lineno", 0))
    return sorted(lines)
