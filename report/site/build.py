"""Builds the site: first the experiments' reports and the answers, then a page of every text."""

import multiprocessing
import shutil
import signal
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from cser_bench.harness.errors import UsageError
from cser_bench.harness.records.shipped import SHIPPED, shipped_folders, take
from cser_bench.report.accuracy_report import build_report
from cser_bench.report.advice.which_method import build_which_method
from cser_bench.report.answers.build import NAME as ANSWERS
from cser_bench.report.answers.build import build_answers
from cser_bench.report.collection import collection_of
from cser_bench.report.explorer.page import write_experiment_page, write_study_page
from cser_bench.report.frame import read_frames
from cser_bench.report.site.methods import Standing, standings_of
from cser_bench.report.site.pages import Site, write_pages
from cser_bench.report.site.places import EXPLORER
from cser_bench.report.speed.report import build_speed_report
from cser_bench.report.speed.timed import experiments_beside
from cser_bench.report.speed.workload_model import STUDY, read_study

_TUNING = "_tuning"


@dataclass(frozen=True)
class Built:
    """What was built of a folder of records.

    path: of report.md in the repository, as if the records lay in its results. standings: what it
    says of methods. is_own: whether the records are the user's own.
    """

    path: str
    standings: Sequence[Standing]
    is_own: bool


def build_site(
    results: Path,
    output: Path,
    root: Path,
    only: Collection[str] = (),
    num_jobs: int = 1,
    progress: Callable[[float, float, str], None] = lambda done, total, what: None,
) -> Site:
    """Write the site, and return what is known of it.

    The same records and texts give the same bytes.

    Args:
        results: folder of one's own records; what is not done there is taken from those that ship.
        output: where to write; what an earlier site left there is removed.
        root: of the repository, with README.md and docs/.
        only: experiments by name, for a look; none given is all. Links to others are left out, and
            answers are as they lie in the records.
        num_jobs: reports that are built at a time.
        progress: takes the parts that are done, how many there are, and what is being made.

    Raises:
        UsageError: there are no such records, the repository has no README.md, or the output holds
            something else.
        RecordError: a record is damaged.
        OSError: the output cannot be written.
    """
    _check_is_checkout(root)
    taken = take(results.resolve())
    places = _places(taken.folders, results.resolve(), only)
    _clear(output)
    shipped = {folder.resolve() for folder in shipped_folders()}
    # The arguments of `_build`.
    tasks = []
    for place, folder in places.items():
        is_own = folder.resolve() not in shipped
        tasks.append((folder, output / place, place, is_own))
    answers = output / "results" / ANSWERS
    to_answer: tuple[Path, Path] | None = (results, answers)
    # Answers quote all experiments, so of some alone they cannot be made.
    if only:
        to_answer = None
        written = _answers_of(results)
        if written is not None:
            shutil.copytree(written, answers)
    built = _in_processes(tasks, to_answer, num_jobs, progress)
    users = [part.path for part in built if part.is_own]
    of_shipped = [part.path for part in built if not part.is_own]
    return write_pages(root, output, of_shipped, users, _standings(built))


def _check_is_checkout(root: Path) -> None:
    if not (root / "README.md").is_file() or not (root / "docs").is_dir():
        raise UsageError(
            f"there is no README.md with docs/ in {root}; make the site in a checkout"
        )


def _standings(built: Sequence[Built]) -> list[Standing]:
    """Return what the reports say of methods, each experiment's once."""
    names: set[str] = set()
    standings: list[Standing] = []
    for part in built:
        name = Path(part.path).parent.name
        # Of two reports of one name the first is the user's own, which answers rest on.
        if name not in names:
            names.add(name)
            standings += part.standings
    return standings


def _in_processes(
    tasks: Sequence[tuple[Path, Path, str, bool]],
    answers: tuple[Path, Path] | None,
    num_jobs: int,
    progress: Callable[[float, float, str], None],
) -> list[Built]:
    """Build reports, and answers where their folders are given; return what was built of reports.

    Each is made in a process of its own kind, so that no drawing state is shared.
    """
    processes = ProcessPoolExecutor(
        num_jobs,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_end_at_ctrl_c,
    )
    resource_tracker.ensure_running()  # its start would let the signal through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        futures = [processes.submit(_build, *task) for task in tasks]
        parts: list[Future[Any]] = [*futures]
        if answers:
            parts.append(processes.submit(_build_answers, *answers))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    what = f"of {len(parts)} reports"
    if answers:
        what += " and answers"
    try:
        # The pages, which come after them, are one part more.
        progress(0, len(parts) + 1, f"0 {what}")
        for number, part in enumerate(as_completed(parts), 1):
            part.result()
            progress(number, len(parts) + 1, f"{number} {what}")
    finally:
        processes.shutdown(cancel_futures=True)
    return [future.result() for future in futures]


def _end_at_ctrl_c() -> None:
    """Have Ctrl-C end this process without a word, as the one that started it says what is to say.

    The signal is kept from the process until here, since Python would show where it came.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _build_answers(results: Path, output: Path) -> None:
    """Write the answers, and the page on which method to use, which takes one's own records too."""
    build_answers(output, collection_of(None))
    build_which_method(results, output)


def _places(
    folders: Iterable[Path], results: Path, only: Collection[str]
) -> dict[str, Path]:
    """Return the folder of each report by its place in the site, tunings left out.

    The first of two folders with one place counts.
    """
    places: dict[str, Path] = {}
    for folder in folders:
        has_records = (folder / "experiment.json").exists() or (folder / STUDY).exists()
        is_asked = not only or folder.name in only
        # A search is told in the report of the experiment that it was made for.
        if not has_records or not is_asked or folder.name.endswith(_TUNING):
            continue
        root = SHIPPED
        if folder.is_relative_to(results):
            root = results
        places.setdefault(f"results/{folder.relative_to(root).as_posix()}", folder)
    missing = set(only) - {folder.name for folder in places.values()}
    if missing:
        name = min(missing)
        raise UsageError(
            f"there are no records of {name} in {results}; give another name"
        )
    if not places:
        raise UsageError(
            f"there are no records in {results}; give a folder that has some"
        )
    return places


def _answers_of(results: Path) -> Path | None:
    """Return the folder of the answers there are: the user's own, or else those that ship."""
    for place in (results, SHIPPED):
        if (place / ANSWERS).is_dir():
            return place / ANSWERS
    return None


def _clear(output: Path) -> None:
    """Make the folder, and empty it of an earlier site."""
    mark = output / "pages.js"
    if output.exists():
        is_empty = not any(output.iterdir())
        # What we did not write is never removed.
        if not is_empty and not mark.is_file():
            raise UsageError(
                f"{output} holds something else than a site; give another folder"
            )
        shutil.rmtree(output)
    output.mkdir(parents=True)
    # Marks the folder as a site's from the start, also if the build is stopped.
    mark.touch()


def _build(folder: Path, output: Path, path: str, is_own: bool) -> Built:
    """Write the report and the explorer of a folder of records."""
    # Links are relative, as the site may be opened as files or lie below any address.
    depth = path.count("/") + 1
    root = "../" * depth
    links = [
        ("Report", "index.html"),
        ("All experiments", f"{root}experiments.html"),
        ("Answers", f"{root}results/{ANSWERS}/index.html"),
        ("Front page", f"{root}index.html"),
    ]
    if (folder / STUDY).exists():
        study = read_study(folder)
        experiments = experiments_beside(folder, study.sessions)
        build_speed_report(study, experiments, output)
        write_study_page(output / EXPLORER, study, experiments, links)
        return Built(f"{path}/report.md", [], is_own)
    frames = read_frames(folder)
    build_report(frames, output)
    write_experiment_page(output / EXPLORER, frames, links)
    return Built(f"{path}/report.md", standings_of(frames), is_own)
