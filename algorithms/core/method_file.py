"""Methods from a file outside this package: its source text becomes classes.

A module is made of the text, and not of the file, so that whoever kept the text has the same
classes wherever the file has gone or however it was edited since.
"""

import hashlib
import inspect
import linecache
import re
import sys
import types
from functools import cache

from cser_bench.algorithms.core.optimizer import DistributedOptimizer

NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")
"""What a spec can call a method."""

TOLD = ("name", "formula", "no_compression")
"""Attributes that every method's class must have, as there is no default for them."""


class MethodFileError(ValueError):
    """A file that no method can be taken from; the message is one sentence for its author."""

    exit_code = 2


def _digest_of(source: str) -> str:
    """Return the SHA-256 of a source text, in hexadecimal digits."""
    return hashlib.sha256(source.encode()).hexdigest()


@cache
def methods_in(source: str, file: str) -> dict[str, type[DistributedOptimizer]]:
    """Return the methods that a source text defines, by the name that specs use.

    Args:
        file: what error messages and tracebacks call it.

    Raises MethodFileError: the text cannot be executed, or defines no method, or two of one name.
    """
    module = module_of(source, file)
    found: dict[str, type[DistributedOptimizer]] = {}
    for item in vars(module).values():
        is_method = inspect.isclass(item) and issubclass(item, DistributedOptimizer)
        # A file also holds the classes that it imports.
        if (
            not is_method
            or item.__module__ != module.__name__
            or inspect.isabstract(item)
        ):
            continue
        _check_told(item, file)
        if found.setdefault(item.name, item) is not item:
            raise MethodFileError(
                f"{file} has two methods named {item.name!r}, {found[item.name].__name__} and "
                f"{item.__name__}; rename one"
            )
    if not found:
        raise MethodFileError(
            f"{file} has no method: define a class that is a DistributedOptimizer and has its own "
            "_update, as docs/adding-a-method.md shows"
        )
    return found


def module_of(source: str, file: str) -> types.ModuleType:
    """Execute a source text as a module of its own name, which its digest is in.

    Raises MethodFileError: that fails.
    """
    name = f"cser_bench_method_{_digest_of(source)[:12]}"
    shown_as = f"<{file} {_digest_of(source)[:12]}>"
    module = types.ModuleType(name)
    module.__file__ = shown_as
    # Dataclasses and annotations look their module up there.
    sys.modules[name] = module
    # So that a traceback out of the method shows its lines. With None in place of a time,
    # `linecache.checkcache` does not drop an entry that is no file.
    linecache.cache[shown_as] = (
        len(source),
        None,
        source.splitlines(keepends=True),
        shown_as,
    )
    try:
        exec(compile(source, shown_as, "exec"), vars(module))
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise MethodFileError(
            f"{file} does not import: {_told(error, shown_as)}"
        ) from None
    return module


def _told(error: BaseException, shown_as: str) -> str:
    """Say in a line what went wrong, and in which line of the file."""
    words = " ".join(str(error).split()) or "no more is said"
    line_number = None
    if isinstance(error, SyntaxError):
        words = error.msg
        line_number = error.lineno
    # The last line of the method's own file that the error came through.
    # From the outermost frame inwards, so the last that matches is the nearest to the error.
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == shown_as:
            line_number = trace.tb_lineno
        trace = trace.tb_next
    where = "" if line_number is None else f" (line {line_number})"
    hint = ""
    if isinstance(error, ModuleNotFoundError):
        hint = "; a method is one file, which may import what is installed"
    return f"{type(error).__name__}: {words}{where}{hint}"


def _check_told(method: type[DistributedOptimizer], file: str) -> None:
    missing = [key for key in TOLD if not hasattr(method, key)]
    if missing:
        raise MethodFileError(
            f"{file}: the class {method.__name__} does not say its {', '.join(missing)}; "
            "docs/adding-a-method.md shows what each stands for"
        )
    if not isinstance(method.name, str) or not NAME.fullmatch(method.name):
        raise MethodFileError(
            f"{file}: the class {method.__name__} is named {method.name!r}; a name is of small "
            "letters, digits, and _ . - between them"
        )
