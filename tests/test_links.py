"""Links: each relative one in a page leads to a file that git has, and to a heading where it names one."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from functools import cache
from os.path import normpath
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[1]


def listed(*patterns: str) -> list[str]:
    """The files of such names that git has, or will have with what is new here."""
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns]
    said = subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    return sorted(name for name in said.splitlines() if (ROOT / name).exists())


FILES = set(listed())
PARENTS = [parent for name in FILES for parent in Path(name).parents]
FOLDERS = {str(parent) for parent in PARENTS}
# Sources of answers lead from where they are written to.
PAGES = [
    page for page in listed("*.md") if not page.startswith("report/answers/pages/")
]


@cache
def tokens_of(page: str) -> list[Token]:
    markdown = MarkdownIt("commonmark").enable("table")
    return markdown.parse((ROOT / page).read_text())


def links_of(page: str) -> list[str]:
    """The addresses of a page's links and pictures."""
    addresses = []
    for token in tokens_of(page):
        for part in token.children or []:
            if part.type == "link_open":
                addresses.append(str(part.attrs["href"]))
            if part.type == "image":
                addresses.append(str(part.attrs["src"]))
    return addresses


@cache
def anchors_of(page: str) -> set[str]:
    """The names that GitHub gives a page's headings, and those that the page gives itself."""
    whole = (ROOT / page).read_text()
    anchors = set(re.findall(r'<a (?:id|name)="([^"]+)"', whole))
    seen: Counter[str] = Counter()
    tokens = tokens_of(page)
    for number, token in enumerate(tokens):
        if token.type != "heading_open":
            continue
        parts = tokens[number + 1].children or []
        text = "".join(
            part.content for part in parts if part.type in ("text", "code_inline")
        )
        without_marks = re.sub(r"[^\w\- ]", "", text.lower())
        name = without_marks.replace(" ", "-")
        anchors.add(f"{name}-{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return anchors


def what_is_wrong(page: str, address: str) -> str | None:
    """Why a link of a page leads nowhere; None where it leads somewhere, or out of the repository."""
    parts = urlsplit(address)
    if parts.scheme or parts.netloc:
        return None
    target = page
    if parts.path:
        folder = Path(page).parent
        target = normpath(folder / unquote(parts.path))
    if target not in FILES | FOLDERS:
        return f"{address}: there is no {target}"
    if (
        parts.fragment
        and target.endswith(".md")
        and parts.fragment not in anchors_of(target)
    ):
        return f"{address}: {target} has no heading of that name"
    return None


@pytest.mark.parametrize("page", PAGES)
def test_links_of_a_page_lead_somewhere(page: str) -> None:
    addresses = links_of(page)
    wrong = [what_is_wrong(page, address) for address in addresses]
    assert [each for each in wrong if each] == []


def test_a_dead_link_would_be_seen() -> None:
    assert what_is_wrong("README.md", "docs/none.md")
    assert what_is_wrong("docs/slurm.md", "../docs/algorithms.md#no-such-heading")
    assert what_is_wrong("README.md", "#no-such-heading")
    assert what_is_wrong("docs/slurm.md", "../README.md") is None
    assert "README.md" in PAGES
    assert len(links_of("README.md")) > 10


@pytest.mark.parametrize("script", listed("examples/*.py", "Makefile", ".ci/*"))
def test_files_that_a_script_names_are_there(script: str) -> None:
    folders = "docs|examples|results/answers|harness/experiments|slurm"
    named = re.findall(
        rf"(?<![\w/.-])(?:{folders})/[\w/-]+\.\w+", (ROOT / script).read_text()
    )
    assert set(named) <= FILES
