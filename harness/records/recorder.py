"""Writes one attempt's records, of which rank 0 alone has a writer; `endings` has its failure."""

from __future__ import annotations

import os
import time
from pathlib import Path

from cser_bench.harness.records import store
from cser_bench.harness.records.atomic import errors_naming, write_text_atomically
from cser_bench.harness.records.store import Attempt, Event, Heartbeat, Result, RunFile

HEARTBEAT_SECONDS = 0.5


class SupersededError(RuntimeError):
    """A newer attempt has taken the run over: this one must write nothing more."""


class Recorder:
    """One attempt at one run, in the run's folder.

    Once it has begun it writes only while no newer one has.

    A lock would not do: a job that was thought dead can outlive its successor's start, on another
    machine. So all methods that write after `begin` raise SupersededError where run.json names a
    newer attempt. `run` is what goes to run.json, without this attempt.
    """

    def __init__(self, folder: Path, run: RunFile, attempt: Attempt) -> None:
        self.folder = folder
        self.run_id = run.run_id
        self.attempt = attempt.attempt
        self._run = run
        self._attempt = attempt
        self._beaten = 0.0

    def enter(self, resumed_from_step: int) -> None:
        """Write the attempt to run.json, after the attempts before it.

        It is written once more where it is the newest already.
        """
        path = self.folder / "run.json"
        before = store.read_record(path, RunFile).attempts if path.exists() else []
        # A job of Slurm enters its start before its workers meet, and training enters it again.
        if self.attempt in [earlier.attempt for earlier in before]:
            self.check_is_newest()
            # Written anew below, now with the step.
            before.pop()
        attempt = self._attempt.model_copy(
            update={"resumed_from_step": resumed_from_step}
        )
        store.write_record(
            path, self._run.model_copy(update={"attempts": [*before, attempt]})
        )

    def begin(self, resumed_from_step: int) -> None:
        """Enter the attempt with the step that it goes on from.

        Evaluations that it will do again are forgotten.
        """
        for name in ("run.json", "events.jsonl", "heartbeat.json", "result.json"):
            # An attempt was killed while it wrote
            for torn in self.folder.glob(f".{name}.*"):
                torn.unlink(missing_ok=True)
        # Before the events are cut: from here on an older attempt that is still at work finds
        # itself replaced, and adds none.
        self.enter(resumed_from_step)
        truncate_events(self.folder / "events.jsonl", resumed_from_step)

    def check_is_newest(self) -> None:
        """Raise SupersededError where run.json names a newer attempt."""
        newest = (
            store.read_record(self.folder / "run.json", RunFile).attempts[-1].attempt
        )
        if newest != self.attempt:
            raise SupersededError(
                f"attempt {newest} has taken run {self.run_id} over from attempt {self.attempt}"
            )

    def event(self, event: Event) -> None:
        self.check_is_newest()
        append_event(self.folder / "events.jsonl", event)

    def heartbeat_is_due(self) -> bool:
        return time.monotonic() - self._beaten >= HEARTBEAT_SECONDS

    def heartbeat(self, heartbeat: Heartbeat) -> None:
        self.check_is_newest()
        # Not durable: a heartbeat lost with the machine tells the truth about it.
        store.write_record(self.folder / "heartbeat.json", heartbeat, durable=False)
        self._beaten = time.monotonic()

    def finish(self, result: Result) -> None:
        """Write result.json, last, with the run's digest.

        An earlier attempt's failure is then history.
        """
        self.check_is_newest()
        events = store.read_events(self.folder / "events.jsonl")
        run = store.read_record(self.folder / "run.json", RunFile)
        digest = store.digest_of(result, events, run)
        result = result.model_copy(update={"sha256": digest})
        # Before the result, so that a run that is done never has a failure beside it.
        (self.folder / "failure.json").unlink(missing_ok=True)
        (self.folder / "heartbeat.json").unlink(missing_ok=True)
        store.write_record(self.folder / "result.json", result)


def truncate_events(path: Path, last_step: int) -> None:
    """Keep the whole lines of events up to `last_step`: a resumed run repeats the rest."""
    if path.exists():
        kept = [event for event in store.read_events(path) if event.step <= last_step]
        lines = [store.event_line(event.json_fields()) for event in kept]
        write_text_atomically(path, "".join(lines))


def append_event(path: Path, event: Event) -> None:
    """Add one line to events.jsonl.

    `Recorder.begin` has taken away a torn last line, if there was one.
    """
    # A line is one write at the end: a kill can tear the last line, and no other.
    with errors_naming(path), open(path, "ab") as file:
        file.write(store.event_line(event.json_fields()).encode())
        file.flush()
        # A checkpoint that is saved next lies behind this score, and a resumed run does not take it
        # again.
        os.fsync(file.fileno())
