"""A command: its name, what it does in words, and options that take several words."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import click


class Command(click.Command):
    """A command of click, whose options with `multiple` take several words, as `--rows sgd cser`.

    Click's own take one word each time that they are given.
    """

    def parse_args(self, context: click.Context, words: list[str]) -> list[str]:
        names: set[str] = set()
        for param in self.params:
            if isinstance(param, click.Option) and param.multiple:
                names.update(param.opts)
        return super().parse_args(context, _one_word_each(words, names, context))


def command(
    name: str, what: str, arguments: str = ""
) -> Callable[[Callable[..., int]], Command]:
    """Return a decorator that makes a command of a function, which returns its exit code.

    Args:
        what: the command does, for its help and for the list of commands.
        arguments: what its arguments are, for its help; click has no help on each.
    """
    # Click cuts `help` short in the list of commands, but not `short_help`.
    return click.command(
        name, cls=Command, help=f"{what}\n\n{arguments}", short_help=what
    )


def _one_word_each(
    words: Sequence[str], names: set[str], context: click.Context
) -> list[str]:
    """Return the words, with an option of these names repeated before each word that it takes."""
    spread: list[str] = []
    # The option whose words follow, and how many it has had.
    option, num_taken = None, 0
    # "--" ends options. One more at the end, so that an option without a word is noticed there too.
    for position, word in enumerate([*words, "--"]):
        if option is not None and not word.startswith("-"):
            spread += [option, word]
            num_taken += 1
            continue
        if option is not None and num_taken == 0:
            raise click.BadOptionUsage(
                option, f"Option {option!r} requires an argument.", context
            )
        option, num_taken = (word, 0) if word in names else (None, 0)
        if word == "--":
            return [*spread, *words[position:]]
        if option is None:
            spread.append(word)
    return spread
