"""A method held to all promises, a finding each."""

import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from cser_bench.algorithms.check.outcomes import BrokenError, DoesNotApplyError
from cser_bench.algorithms.check.promises import PROMISES
from cser_bench.algorithms.check.subject import Subject

Verdict = Literal["ok", "FAIL", "none"]
"""`none`: the method makes no such promise."""


@dataclass(frozen=True)
class Finding:
    """Whether a promise is kept, and what else there is to say."""

    promise: str
    verdict: Verdict
    words: str = ""

    def __str__(self) -> str:
        """Return the finding in a line."""
        return f"{self.verdict:<5} {self.promise}{': ' * bool(self.words)}{self.words}"


def findings_of(subject: Subject) -> Iterator[Finding]:
    """Check the promises one after another."""
    for promise in PROMISES:
        yield finding_of(subject, promise)


def finding_of(subject: Subject, promise: str) -> Finding:
    """Check one promise; an exception out of the method is a finding too."""
    try:
        with warnings.catch_warnings():
            # What a plan says of unusual settings is no finding.
            warnings.simplefilter("ignore")
            PROMISES[promise](subject)
    except DoesNotApplyError as error:
        return Finding(promise, "none", str(error))
    except BrokenError as error:
        return Finding(promise, "FAIL", str(error))
    except Exception as error:
        return Finding(promise, "FAIL", _told(error, subject))
    return Finding(promise, "ok")


def _told(error: Exception, subject: Subject) -> str:
    """Say an exception in a line, with the line of the method's file that it came through last."""
    words = " ".join(str(error).split()) or "no more is said"
    where = ""
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename.startswith(f"<{subject.file} "):
            where = f" (line {frame.lineno} of {subject.file})"
    return f"{type(error).__name__}: {words}{where}"


def keeps_promises(subject: Subject) -> bool:
    """Print a line for each promise as it is checked; return whether all are kept."""
    print(f"{subject.name} of {subject.file}:", flush=True)
    began = time.monotonic()
    verdicts = []
    for finding in findings_of(subject):
        print(finding, flush=True)
        verdicts.append(finding.verdict)
    num_made = len(verdicts) - verdicts.count("none")
    seconds = time.monotonic() - began
    print(
        f"{verdicts.count('ok')} of {num_made} promises are kept ({seconds:.0f} s)",
        flush=True,
    )
    return "FAIL" not in verdicts
