"""The index of the search: the titles of pages and of their parts."""

import json
from collections.abc import Iterable
from typing import NamedTuple


class SearchEntry(NamedTuple):
    """A title, what it is the title of, and where that stands in the site."""

    title: str
    what: str
    place: str


def index_script(entries: Iterable[SearchEntry]) -> str:
    """Return the script with all entries.

    It is a script and no JSON, as a page that is opened as a file may load nothing else.
    """
    lines = [json.dumps(entry, ensure_ascii=False) for entry in entries]
    return "const PAGES = [\n" + ",\n".join(lines) + "\n];\n"
