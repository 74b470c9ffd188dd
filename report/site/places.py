"""Where a file of the repository stands in the site, and what a link between pages is."""

import posixpath
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

INDEX = ("README.md", "report.md", "answers.md")
"""Texts that are the page of their folder."""

EXPLORER = "explorer.html"

_COPIED = (".png", ".pdf", ".csv", ".jsonl")
"""Files of the repository that pages show or give as they are."""


def page_of(path: str) -> str:
    """Return where the page of a file of the repository stands in the site.

    The site has the repository's folders. A text becomes a page, and other files of text a page of
    their lines.
    """
    folder, name = posixpath.split(path)
    if name in INDEX:
        return posixpath.join(folder, "index.html")
    if name.endswith(".md"):
        return f"{path.removesuffix('.md')}.html"
    return f"{path}.html"


def relative(page: str, target: str) -> str:
    """Return the link from one page of the site to another, or to a file."""
    return posixpath.relpath(target, posixpath.dirname(page) or ".")


@dataclass
class Places:
    """What can be linked to.

    root: of the repository. site: folder that is written into, with what was built in it so far.
    texts: the Markdown files that become pages, by their path in the repository, or of what was
        built.
    sources: files and folders of the repository that pages link to, which get pages of
        their own.
    missing: links that lead to what is in neither, as (page, target).
    """

    root: Path
    site: Path
    texts: dict[str, Path]
    sources: set[str] = field(default_factory=set)
    missing: set[tuple[str, str]] = field(default_factory=set)

    def to_write(self, place: str) -> Path:
        """Return where a file of the site is written, in a folder that is there."""
        path = self.site / place
        # Whatever a text links to, nothing is written outside the site.
        assert path.resolve().is_relative_to(self.site.resolve()), place
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def link(self, source: str, href: str) -> str | None:
        """Return a link of a text as its page has it; None where it leads nowhere in the site.

        Args:
            source: path of the text in the repository.
            href: as written there, relative to the text.
        """
        if "://" in href or href.startswith(("#", "mailto:")):
            return href
        target, _, part = href.partition("#")
        joined = posixpath.join(posixpath.dirname(source), unquote(target))
        path = posixpath.normpath(joined)
        found = self.place(path)
        if found is None:
            self.missing.add((source, href))
            return None
        link = relative(page_of(source), found)
        if part:
            link = f"{link}#{part}"
        return link

    def place(self, path: str) -> str | None:
        """Return where a file of the repository stands in the site; None where it does not."""
        # A path on this machine, or out of the repository, is nothing that pages may link to.
        if posixpath.isabs(path) or path.split("/")[0] == "..":
            return None
        if path in self.texts:
            return page_of(path)
        if (self.site / path).is_file():
            return path
        for name in INDEX:
            if f"{path}/{name}" in self.texts:
                return page_of(f"{path}/{name}")
        in_root = self.root / path
        # Results that were not built have no page.
        if not in_root.exists() or path.endswith(".md"):
            return None
        if path.endswith(_COPIED):
            shutil.copy(in_root, self.to_write(path))
            return path
        self.sources.add(path)
        if in_root.is_dir():
            return f"{path}/index.html"
        return page_of(path)
