"""The site: every link leads to a page, every page has a title, and nothing comes from a network."""

import json
import posixpath
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from cser_bench.harness.errors import UsageError
from cser_bench.report.site.build import build_site
from cser_bench.report.site.method_files import read_methods
from cser_bench.report.site.pages import write_pages
from cser_bench.report.site.places import Places, page_of
from cser_bench.report.site.render import html_of, plain
from tests.own_runs import begin

pytestmark = pytest.mark.whole

ROOT = Path(__file__).parents[2]
EXPERIMENT = "resnet_regime"
REPORT = f"results/reference/{EXPERIMENT}/index.html"
SMALL = "study_tail"
HOSTILE = "a|b *c* <script>alert(1)</script> [d](e) &lt;"


class Page(HTMLParser):
    """What a page of the site has in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.policies: list[str] = []
        self.scripts: list[str] = []
        self.cells: list[str] = []
        self.inside = ""
        self.images: list[dict[str, str | None]] = []
        self.num_titles = 0
        self.heads: list[int] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        facts = dict(attrs)
        if tag in ("script", "td", "th"):
            self.inside = tag
        if tag == "meta" and facts.get("http-equiv") == "Content-Security-Policy":
            self.policies.append(str(facts["content"]))
        if tag == "script":
            self.scripts.append("")
        if tag in ("td", "th"):
            self.cells.append("")
        if facts.get("id"):
            self.ids.add(str(facts["id"]))
        if tag == "a":
            self.links.append(str(facts["href"]))
        if tag in ("link", "script", "img"):
            address = facts.get("href") or facts.get("src") or ""
            self.loaded.append(address)
        if tag == "img":
            self.images.append(facts)
        self.num_titles += tag == "title"
        if re.fullmatch("h[1-6]", tag):
            self.heads.append(int(tag[1]))

    def handle_endtag(self, tag: str) -> None:
        if tag == self.inside:
            self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "script":
            self.scripts[-1] += data
        if self.inside in ("td", "th"):
            self.cells[-1] += data


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    output = folder / "made"
    build_site(folder / "nothing", output, ROOT, [EXPERIMENT])
    return output


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    return {
        path.relative_to(site).as_posix(): Page(path) for path in site.rglob("*.html")
    }


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site of one experiment whose spec has texts that would be markup."""
    results = tmp_path_factory.mktemp("hostile") / "results"
    shutil.copytree(ROOT / "results" / SMALL, results / SMALL)
    record = results / SMALL / "experiment.json"
    experiment = json.loads(record.read_text())
    for row in experiment["rows"]:
        row["label"] = f"{HOSTILE} {row['label']}"
    for contrast in experiment["contrasts"] or []:
        contrast["question"] = f"{HOSTILE}?"
    experiment["title"] = HOSTILE
    experiment["declared"] = HOSTILE
    record.write_text(json.dumps(experiment))
    output = results.parent / "made"
    build_site(results, output, ROOT, [SMALL])
    return output / "results" / SMALL


def test_texts_of_a_spec_are_texts_in_a_report(hostile: Path) -> None:
    """To a reader of Markdown that knows HTML, as most do."""
    tokens = (
        MarkdownIt("commonmark")
        .enable("table")
        .parse((hostile / "report.md").read_text())
    )
    lines = [token for token in tokens if token.type == "inline"]
    parts = [part for line in lines for part in line.children or []]
    html_parts = [part.content for part in parts if part.type == "html_inline"]
    assert not html_parts
    html = [token for token in tokens if token.type == "html_block"]
    blocks = [token.content.strip() for token in html]
    for block in blocks:
        assert re.fullmatch("<!-- [^<>]+ -->", block)
    words = [plain(line) for line in lines]
    assert words[1] == f"{HOSTILE}.", "the title, below the finding"
    assert sum(text.startswith(f"{HOSTILE} ") for text in words) > 2, (
        "labels in a table"
    )
    assert f"Declared {HOSTILE}." in words


def test_texts_of_a_spec_are_texts_in_the_site_and_the_explorer(hostile: Path) -> None:
    page = Page(hostile / "index.html")
    assert page.scripts == ["", ""], "its own two, which are files"
    marked = [cell for cell in page.cells if cell.startswith(f"{HOSTILE} ")]
    assert len(marked) > 2
    explorer = Page(hostile / "explorer.html")
    payload, _ = explorer.scripts
    methods = json.loads(payload)["methods"]
    labels = [method["label"] for method in methods]
    assert labels
    for label in labels:
        assert label.startswith(f"{HOSTILE} ")


def test_an_own_experiment_stands_under_its_own_heading_beside_the_one_that_ships(
    tmp_path: Path,
) -> None:
    """As after `make reproduce`, which does an experiment that ships once more."""
    begin(tmp_path / "results", "first_look", num_done=1000)
    build_site(tmp_path / "results", tmp_path / "site", ROOT, ["first_look"])
    listed = (tmp_path / "site" / "experiments.html").read_text()
    _, *groups = listed.split("<h2>")
    links = {
        group.partition("</h2>")[0]: re.findall('<li><a href="(.+?)"', group)
        for group in groups
    }
    assert links == {
        "Your own experiments": ["results/first_look/index.html"],
        "Networks and tasks": ["results/reference/first_look/index.html"],
    }
    for [place] in links.values():
        page = Page(tmp_path / "site" / place)
        assert "explorer.html" in page.links, place


def test_pages_may_load_the_sites_own_files_alone(pages: dict[str, Page]) -> None:
    for place, page in pages.items():
        [policy] = page.policies
        directives = dict(part.split(" ", 1) for part in policy.split("; "))
        assert directives["default-src"] == "'none'", place
        assert "http" not in policy and "*" not in policy, place
        if not place.endswith("explorer.html"):
            assert "unsafe" not in directives["script-src"], place


def test_nothing_is_written_outside_the_site(tmp_path: Path) -> None:
    """Not where a text links to a folder or a picture that is on this machine."""
    outside = tmp_path / "outside"
    root = tmp_path / "root"
    site = tmp_path / "site"
    for folder in (outside, root / "docs", site):
        folder.mkdir(parents=True)
    (outside / "a.png").touch()
    links = f"[a]({outside}/) [b]({outside}/a.png) [c](../outside/) [d](docs)"
    (root / "README.md").write_text(f"# A\n\n{links} `{outside}/a.png`\n")
    written = write_pages(root, site, [], [], [])
    kept = [path.name for path in outside.iterdir()]
    folders = {path.name for path in tmp_path.iterdir()}
    assert kept == ["a.png"]
    assert folders == {"outside", "root", "site"}
    assert len(written.places.missing) == 3
    assert (site / "docs" / "index.html").is_file()
    assert "a b c <a" in (site / "index.html").read_text()
    for place in (f"{outside}/index.html", "../index.html"):
        with pytest.raises(AssertionError):
            written.write(place, "A", "")


def test_there_is_a_page_for_everything(pages: dict[str, Page]) -> None:
    wanted = [
        "index.html",
        "results/answers/index.html",
        "experiments.html",
        "docs/slurm.html",
    ]
    wanted += [REPORT, f"results/reference/{EXPERIMENT}/explorer.html"]
    wanted += [method.page for method in read_methods(ROOT)]
    assert set(wanted) <= pages.keys()


def test_every_link_leads_to_a_page_and_its_part(
    site: Path, pages: dict[str, Page]
) -> None:
    for place, page in pages.items():
        for link in page.links:
            if "://" in link:
                continue
            target, _, part = link.partition("#")
            folder = posixpath.dirname(place)
            path = posixpath.normpath(posixpath.join(folder, target))
            path = path if target else place
            assert (site / path).is_file(), (place, link)
            if part:
                assert part in pages[path].ids, (place, link)


def test_nothing_is_loaded_from_a_network(site: Path, pages: dict[str, Page]) -> None:
    for place, page in pages.items():
        for address in page.loaded:
            assert "://" not in address and not address.startswith("//"), (
                place,
                address,
            )
            if address and not address.startswith("data:"):
                path = posixpath.normpath(
                    posixpath.join(posixpath.dirname(place), address)
                )
                assert (site / path).is_file(), (place, address)
    styles_and_scripts = (*site.glob("*.css"), *site.glob("*.js"))
    for path in styles_and_scripts:
        text = path.read_text()
        assert not re.search(r"url\(|@import|fetch\(", text), path


def test_every_page_has_a_title_one_first_heading_and_names_for_pictures(
    pages: dict[str, Page],
) -> None:
    for place, page in pages.items():
        assert page.num_titles == 1, place
        assert page.heads[0] == 1, place
        assert page.heads.count(1) == 1, place
        for image in page.images:
            assert image.get("alt"), place


def test_report_explorer_answers_and_methods_lead_to_each_other(
    site: Path, pages: dict[str, Page]
) -> None:
    explorer = f"results/reference/{EXPERIMENT}/explorer.html"
    report = pages[REPORT].links
    assert {"explorer.html", "csv/accuracy.csv", "report.pdf"} <= set(report)
    assert any(link.startswith("../../answers/index.html#") for link in report)
    links = set(pages[explorer].links)
    assert {"index.html", "../../../experiments.html"} <= links
    answers = pages["results/answers/index.html"].links
    assert f"../reference/{EXPERIMENT}/index.html" in answers
    assert f"../reference/{EXPERIMENT}/explorer.html" in answers
    page = (site / "methods/ef_sgd.html").read_text()
    assert f"../{REPORT}" in page
    assert "below 0.5 points" in page
    for part in ("update", "source", "cost", "state", "where-it-stands", "code"):
        assert part in pages["methods/ef_sgd.html"].ids


def test_every_method_says_its_source_cost_and_state(pages: dict[str, Page]) -> None:
    for method in read_methods(ROOT):
        asked = {"update", "source", "cost", "state"}
        missing = asked - pages[method.page].ids
        assert not missing, (method.name, missing)
        assert method.formula, method.name


def test_search_knows_every_title(site: Path) -> None:
    index = (site / "pages.js").read_text()
    for name in (f"explorer of {EXPERIMENT}", "method ef_sgd", "docs/slurm.html"):
        assert name in index


def test_links_of_texts_are_those_of_pages(tmp_path: Path) -> None:
    texts = {"docs/a.md": tmp_path / "a.md", "README.md": tmp_path / "README.md"}
    places = Places(ROOT, tmp_path, texts)
    markdown = (
        "# A\n\n[b](../README.md#there) [c](gone.md) [d](https://x.org) `README.md`\n"
    )
    text = html_of(markdown, "docs/a.md", places, {})
    assert page_of("docs/a.md") == "docs/a.html"
    assert '<a href="../index.html#there">b</a>' in text.body
    assert " c " in text.body
    assert places.missing == {("docs/a.md", "gone.md")}
    assert '<a href="https://x.org">d</a>' in text.body
    assert '<a href="../index.html"><code>README.md</code></a>' in text.body


def test_cells_of_long_texts_are_wide_and_numbers_stay_with_their_sign(
    tmp_path: Path,
) -> None:
    words = "words " * 20
    markdown = (
        f"# A\n\nIt is 5 % of it.\n\n| a | b |\n| --- | --- |\n| short | {words}|\n"
    )
    places = Places(tmp_path, tmp_path / "site", {})
    text = html_of(markdown, "a.md", places, {})
    assert text.body.count('class="long"') == 1
    assert "<td>short</td>" in text.body
    assert "5\N{NO-BREAK SPACE}% of it" in text.body


def test_what_is_no_site_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="something else"):
        build_site(tmp_path / "nothing", tmp_path, ROOT, [EXPERIMENT])
    with pytest.raises(UsageError, match="no records of nothing"):
        build_site(tmp_path / "nothing", tmp_path / "new", ROOT, ["nothing"])
    assert (tmp_path / "mine.txt").read_text() == "mine"
