"""Times the whole report over made-up runs: python -m report.bench --runs 10000 --json FILE."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from report.accuracy_report import build_report
from report.synthetic import METHODS, Design, make_experiment


def design_of(runs: int) -> Design:
    """A design of about `runs` runs: up to twenty methods at ten ratios, the rest seeds."""
    methods = tuple(
        replace(METHODS[i % len(METHODS)], algorithm=f"method_{i}", label=f"Method {i + 1}")
        for i in range(min(20, max(1, runs // 100)))
    )
    ratios = tuple(float(16 * 2**i) for i in range(10))
    seeds = max(2, round(runs / (len(methods) * len(ratios) + 2)))
    return Design(name="bench", methods=methods, ratios=ratios, seeds=tuple(range(1, seeds + 1)))


def measure(runs: int, folder: Path) -> dict[str, float | int]:
    """Make the records, then build the report of them twice; the number of runs, and seconds of each by the wall clock.

    The processor's seconds are given too: on a machine that does other work the wall clock says little.
    """
    design = design_of(runs)
    started = time.perf_counter()
    make_experiment(folder / "bench", design)
    made, processor = time.perf_counter(), time.process_time()
    build_report(folder / "bench", output=folder / "first")
    first, processor = time.perf_counter(), time.process_time() - processor
    build_report(folder / "bench", output=folder / "second")
    second = time.perf_counter()
    same = (folder / "first/report.pdf").read_bytes() == (folder / "second/report.pdf").read_bytes()
    return {
        "runs": len(design.seeds) * (len(design.methods) * len(design.ratios) + 2),
        "generate_seconds": made - started,
        "report_seconds": first - made,
        "report_processor_seconds": processor,
        "rebuild_seconds": second - first,
        "same_bytes": int(same),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Time it and write the numbers; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m report.bench", description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000, help="number of made-up runs, about (default 10000)")
    parser.add_argument("--json", type=Path, help="file for the numbers (default: standard output)")
    options = parser.parse_args(arguments)
    if options.runs < 1:
        parser.error("--runs must be at least 1")
    with tempfile.TemporaryDirectory() as folder:
        text = json.dumps(measure(options.runs, Path(folder)), indent=1) + "\n"
    if options.json:
        options.json.write_text(text)
    else:
        sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
