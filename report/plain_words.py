"""What reports print in the place of a spec's own texts: `plain_words.toml`."""

import tomllib
from functools import cache
from pathlib import Path

from cser_bench.harness.records.experiment import Experiment

FILE = Path(__file__).parent / "plain_words.toml"

TEXTS = ("title", "declared", "margin_reason")
"""What of an experiment's record is a text for readers."""


@cache
def plain_words() -> dict[str, str]:
    """Return what is printed, by what the record says."""
    entries = tomllib.loads(FILE.read_text(encoding="utf-8"))["words"]
    return {entry["recorded"]: entry["plain"] for entry in entries}


def in_plain_words(experiment: Experiment) -> Experiment:
    """Return an experiment with plain words where there are any; other texts stay as recorded."""
    plain = {}
    for name in TEXTS:
        recorded = getattr(experiment, name)
        if recorded in plain_words():
            plain[name] = plain_words()[recorded]
    return experiment.model_copy(update=plain)
