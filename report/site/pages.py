"""The site's pages: which there are, and what each has in addition to its text."""

import html
import posixpath
import re
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cser_bench.harness.records.atomic import write_text_atomically
from cser_bench.report.explorer.page import LOOKS
from cser_bench.report.site.method_files import MethodFile, read_methods
from cser_bench.report.site.methods import Standing, page_html, words_html
from cser_bench.report.site.places import EXPLORER, Places, page_of, relative
from cser_bench.report.site.render import HERE, Text, code_html, html_of, template
from cser_bench.report.site.search import SearchEntry, index_script

NAME = "cser-bench"

_ANSWERS_FOLDER = "results/answers"
ANSWERS = f"{_ANSWERS_FOLDER}/answers.md"
WHICH_METHOD = "results/answers/which-method.md"

SPEEDUPS = "speedups"
"""The study that answers on step times quote."""

METHODS = "methods/index.html"
EXPERIMENTS = "experiments.html"
DOCS = "docs/README.md"

_OWN = "Your own experiments"

QUESTION = "h3"
"""The headings of questions among the answers."""

STEP_TIMES = "../speedups/report.md"
"""How an answer links to the study of step times."""

_KINDS = {
    "results/reference/": "Networks and tasks",
    "results/study_": "Studies of single questions",
    "results/": "Step times",
}
"""What experiments that ship are, by how the path of their report begins; the first that fits."""

_NUMBER = re.compile(r"(\d+)")
_CODE = re.compile(r"`([\w.]+)`")
_FINDING = re.compile(r"^> \*\*(.+)\*\*", re.MULTILINE)


@dataclass
class Site:
    """What is known of the site while its pages are written.

    output: its folder. reports: by the name of an experiment, its report.md in the repository; the
    user's own where the experiment ships too. own, shipped: all reports. quoted: by the name of an
    experiment, the answers that name it, as (number, place of the page).
    doors: what every page links to at its top, by name. entries: of the search, so far.
    """

    output: Path
    places: Places
    reports: Mapping[str, str]
    own: Sequence[str]
    shipped: Sequence[str]
    quoted: Mapping[str, list[tuple[str, str]]]
    doors: Mapping[str, str]
    entries: list[SearchEntry] = field(default_factory=list)

    def write(self, place: str, title: str, body: str) -> None:
        """Write a page."""
        page = template().render(
            site=NAME,
            title=title,
            root="../" * place.count("/"),
            page=place,
            doors=self.doors.items(),
            body=body,
        )
        write_text_atomically(self.places.to_write(place), page, durable=False)


def write_pages(
    root: Path,
    output: Path,
    shipped: Sequence[str],
    own: Sequence[str],
    standings: Sequence[Standing],
) -> Site:
    """Write every page but the explorers, and what they load.

    Args:
        root: of the repository.
        output: folder of the site, with all reports and answers in it.
        shipped: report.md of each experiment that ships, by its path in the repository.
        own: likewise of the user's own experiments.
        standings: what experiments say of methods.

    Raises:
        OSError: a page cannot be written.
    """
    texts = _texts(root, output)
    places = Places(root, output, texts)
    # The first of several with one name counts, so it is put in last.
    reports = {
        Path(source).parent.name: source for source in reversed([*own, *shipped])
    }
    quoted = _quoted(places, reports)
    site = Site(output, places, reports, own, shipped, quoted, _doors(texts))
    written = {source: _write_text(site, source) for source in texts}
    _write_experiments(site, written)
    _write_methods(site, root, standings)
    # After all other pages, whose links say which files need a page.
    _write_sources(site)
    shutil.copy(HERE / "search.js", output)
    looks = LOOKS.read_text() + (HERE / "site.css").read_text()
    write_text_atomically(output / "style.css", looks, durable=False)
    script = index_script(site.entries)
    write_text_atomically(output / "pages.js", script, durable=False)
    return site


def _doors(texts: Collection[str]) -> dict[str, str]:
    """Return the pages that every page leads to, by what they are called, in order."""
    doors = {NAME: "index.html"}
    if WHICH_METHOD in texts:
        doors["Which method"] = page_of(WHICH_METHOD)
    doors["Methods"] = METHODS
    doors["Experiments"] = EXPERIMENTS
    if ANSWERS in texts:
        doors["Answers"] = page_of(ANSWERS)
    if DOCS in texts:
        doors["Docs"] = page_of(DOCS)
    return doors


def _texts(root: Path, output: Path) -> dict[str, Path]:
    """Return the texts that become pages, by their path in the repository."""
    paths = sorted(root.glob("docs/**/*.md"))
    paths += sorted(root.glob("*.md"))
    paths += root.glob("examples/README.md")
    paths += root.glob("results/README.md")
    texts = {}
    for path in paths:
        texts[path.relative_to(root).as_posix()] = path
    # From results only what was built, so that pages say what these records give.
    for path in sorted(output.glob("results/**/*.md")):
        texts[path.relative_to(output).as_posix()] = path
    return texts


def _is_answer(source: str) -> bool:
    return source.startswith(f"{_ANSWERS_FOLDER}/")


def _quoted(
    places: Places, reports: Mapping[str, str]
) -> dict[str, list[tuple[str, str]]]:
    """Return the answers that name each experiment, in their order."""
    quoted: dict[str, list[tuple[str, str]]] = {}
    if ANSWERS not in places.texts:
        return quoted

    def collect(tag: str, name: str, section: str) -> str:
        if tag == QUESTION:
            for experiment in _sources_of(section, reports):
                place = f"{page_of(ANSWERS)}#{name}"
                quoted.setdefault(experiment, []).append((_short_name(name), place))
        return ""

    # Rendered for the ids of its headings alone.
    markdown = places.texts[ANSWERS].read_text()
    html_of(markdown, ANSWERS, places, {}, collect)
    return quoted


def _short_name(name: str) -> str:
    """Return what links call a question: its number, or of one without the words of its id."""
    number = _NUMBER.match(name)
    if number is None:
        return name.replace("-", " ")
    return number.group(1)


def _sources_of(text: str, reports: Mapping[str, str]) -> list[str]:
    """Return the experiments that an answer names, each once; of step times their study.

    Args:
        text: of the answer.
        reports: of the experiments that are in the site, by name.
    """
    names = [name for name in _CODE.findall(text) if name in reports]
    if STEP_TIMES in text and SPEEDUPS in reports:
        names.append(SPEEDUPS)
    return list(dict.fromkeys(names))


def _write_text(site: Site, source: str) -> Text:
    """Write the page of a text, and put its title into the search."""
    is_report = source in site.own or source in site.shipped

    def under_heading(tag: str, name: str, section: str) -> str:
        if is_report and tag == "h1":
            return _beside_report(site, source)
        if source == ANSWERS and tag == QUESTION:
            return _beside_answer(site, source, section)
        return ""

    markdown = site.places.texts[source].read_text()
    text = html_of(markdown, source, site.places, site.reports, under_heading)
    page = page_of(source)
    site.write(page, text.title, text.body)
    what = "text"
    if is_report:
        name = Path(source).parent.name
        what = f"report of {name}"
        place = relative_place(page, EXPLORER)
        site.entries.append(SearchEntry(text.title, f"explorer of {name}", place))
    site.entries.append(SearchEntry(text.title, what, page))
    if _is_answer(source):
        what = "answer"
    elif source.startswith("docs/"):
        what = text.title
    else:
        return text
    for name, heading in text.headings:
        site.entries.append(SearchEntry(heading, what, f"{page}#{name}"))
    return text


def relative_place(page: str, name: str) -> str:
    """Return the place of a file in the folder of a page."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), name))


def _links(links: Sequence[tuple[str, str]]) -> str:
    """Return links in a line."""
    return " · ".join(
        f'<a href="{html.escape(href)}">{html.escape(name)}</a>' for name, href in links
    )


def _beside_report(site: Site, source: str) -> str:
    """Return the line under a report's title: its explorer, tables, PDF and answers."""
    page = page_of(source)
    folder = site.output / posixpath.dirname(page)
    name = folder.name
    files = [("Explorer", EXPLORER), ("PDF", "report.pdf"), ("Markdown", "report.md")]
    lines = [_links(files)]
    tables = []
    for path in sorted(folder.glob("csv/*.csv")):
        tables.append((path.stem, f"csv/{path.name}"))
    if tables:
        lines.append(f"Tables as CSV: {_links(tables)}")
    answers = []
    for number, place in site.quoted.get(name, []):
        answers.append((number, relative(page, place)))
    if answers:
        lines.append(f"Quoted in answers {_links(answers)}")
    return "".join(f'<p class="beside">{line}</p>' for line in lines)


def _beside_answer(site: Site, source: str, section: str) -> str:
    """Return the line under a question: the reports it is drawn from, and explorers."""
    page = page_of(source)
    links = []
    for experiment in _sources_of(section, site.reports):
        report = page_of(site.reports[experiment])
        explorer = relative_place(report, EXPLORER)
        links.append((f"Report of {experiment}", relative(page, report)))
        links.append(("explorer", relative(page, explorer)))
    if not links:
        links.append(("All experiments", relative(page, EXPERIMENTS)))
    return f'<p class="beside">{_links(links)}</p>'


def _write_experiments(site: Site, written: Mapping[str, Text]) -> None:
    """Write the page that lists the experiments, with what each has found."""
    # By heading, in the order of the page: report.md of each experiment, by its path.
    groups: dict[str, Sequence[str]] = {_OWN: site.own}
    by_kind: dict[str, list[str]] = {}
    for source in site.shipped:
        fitting = [kind for start, kind in _KINDS.items() if source.startswith(start)]
        by_kind.setdefault(fitting[0], []).append(source)
    for kind in _KINDS.values():
        groups[kind] = by_kind.get(kind, [])
    parts = ["<h1>Experiments</h1>"]
    for kind, sources in groups.items():
        if not sources:
            continue
        parts += [f"<h2>{kind}</h2>", '<ul class="list">']
        parts += [_experiment_item(site, source, written[source]) for source in sources]
        parts.append("</ul>")
    site.write(EXPERIMENTS, "Experiments", "\n".join(parts))
    site.entries.append(
        SearchEntry("Experiments", "all reports and explorers", EXPERIMENTS)
    )


def _experiment_item(site: Site, source: str, text: Text) -> str:
    """Return an experiment's entry in the list: its title, what it found, and its links."""
    report = page_of(source)
    name = Path(source).parent.name
    explorer = relative_place(report, EXPLORER)
    links = _links([("report", report), ("explorer", explorer)])
    found = _FINDING.search(site.places.texts[source].read_text())
    finding = ""
    if found is not None:
        # Without the marks of Markdown: backslashes before signs, and bold type.
        words = re.sub(r"\\(.)|\*\*", r"\1", found.group(1))
        finding = f"<p>{html.escape(words)}</p>"
    title = html.escape(text.title)
    return (
        f'<li><a href="{report}">{title}</a>{finding}'
        f'<p class="beside"><code>{name}</code> · {links}</p></li>'
    )


def _write_methods(site: Site, root: Path, standings: Sequence[Standing]) -> None:
    """Write a page a method, and the page that lists them by family."""
    families: dict[str, list[MethodFile]] = {}
    for method in read_methods(root):
        families.setdefault(method.family, []).append(method)
        of_method = [line for line in standings if line.algorithm == method.name]
        reports = {}
        for name, source in site.reports.items():
            reports[name] = relative(method.page, page_of(source))
        body = page_html(method, of_method, reports)
        site.write(method.page, method.title, body)
        site.entries.append(
            SearchEntry(method.title, f"method {method.name}", method.page)
        )
    parts = ["<h1>Methods</h1>"]
    for family, methods in sorted(families.items()):
        parts.append(f"<h2>{html.escape(family.capitalize())}</h2>")
        parts.append('<ul class="list">')
        for method in methods:
            link = relative(METHODS, method.page)
            parts.append(
                f'<li><a href="{link}">{html.escape(method.title)}</a> <code>{method.name}</code>'
                f"<p>{words_html(method.lead)}</p></li>"
            )
        parts.append("</ul>")
    site.write(METHODS, "Methods", "\n".join(parts))
    site.entries.append(SearchEntry("Methods", "all methods by family", METHODS))


def _write_sources(site: Site) -> None:
    """Write the pages of files and folders of the repository that other pages link to."""
    places = site.places
    done: set[str] = set()
    # The page of a folder links to its files, which then get pages too.
    while places.sources - done:
        source = min(places.sources - done)
        done.add(source)
        path = places.root / source
        if path.is_dir():
            place = f"{source}/index.html"
            body = "\n".join(_folder_lines(site, source))
        else:
            place = page_of(source)
            body = code_html(path.read_text())
        site.write(
            place, source, f"<h1><code>{html.escape(source)}</code></h1>\n{body}"
        )


def _folder_lines(site: Site, source: str) -> Iterator[str]:
    yield '<ul class="list">'
    folder = site.places.root / source
    for path in sorted(folder.iterdir()):
        name = path.name
        if path.is_file() and not name.startswith("."):
            place = site.places.place(f"{source}/{name}")
            if place is not None:
                link = relative(f"{source}/index.html", place)
                yield f'<li><a href="{html.escape(link)}">{html.escape(name)}</a></li>'
    yield "</ul>"
