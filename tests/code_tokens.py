"""Prints the code tokens of each package, and of the tests.

    python -m tests.code_tokens

A token is one of Python's `tokenize`, without comments, docstrings, newlines and indents.
"""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

PACKAGES = (
    "algorithms",
    "harness",
    "slurm",
    "report",
    "cser_bench",
    "examples",
    "docs",
)

SPACE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


def code_tokens(source: str) -> int:
    """Return how many tokens of code a source text has."""
    docstrings = set()
    for node in ast.walk(ast.parse(source)):
        # A text that stands alone documents what is above it.
        match node:
            case ast.Expr(value=ast.Constant(value=str())):
                docstrings.add((node.lineno, node.col_offset))
    count = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        count += token.type not in SPACE and token.start not in docstrings
    return count


def tokens_under(folder: Path) -> int:
    """Return the tokens of all Python files under a folder, without what it has links to."""
    paths = [path for path in folder.rglob("*.py") if path.resolve() == path]
    return sum(code_tokens(path.read_text()) for path in paths)


def main() -> None:
    """Print a line a package, their sum, and the tests."""
    sizes = {name: tokens_under(ROOT / name) for name in PACKAGES}
    sizes["product"] = sum(sizes.values())
    sizes["tests"] = tokens_under(ROOT / "tests")
    for name, size in sizes.items():
        print(f"{name:<12}{size:>9,} tokens")


if __name__ == "__main__":
    main()
