"""report.html: what report.md says, with its pictures in it and nothing from a network."""

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from cser_bench.report.page import write_page

PICTURE = b"\x89PNG, or so"
REPORT = """# A *fine* title & more

![Accuracy by method](figures/by%20method.png)

| row | drop |
| --- | ---: |
| a | 0.1 |
| b | −0.2 |

A link to [the records](csv/runs.csv), and `a < b`.
"""


class Seen(HTMLParser):
    """The tags of a page with their attributes, and its texts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture
def page(tmp_path: Path) -> str:
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "by method.png").write_bytes(PICTURE)
    report = tmp_path / "report.md"
    report.write_text(REPORT)
    write_page(report)
    return (tmp_path / "report.html").read_text()


def test_a_page_has_the_reports_texts_and_cells(page: str) -> None:
    seen = Seen(page)
    assert "A fine title & more" in seen.texts, "as the title"
    names = [tag for tag, _ in seen.tags]
    assert [names.count(tag) for tag in ("table", "th", "td")] == [1, 2, 4]
    for text in ("row", "drop", "a", "0.1", "b", "−0.2", "a < b"):
        assert text in seen.texts
    assert ("a", {"href": "csv/runs.csv"}) in seen.tags


def test_a_page_holds_its_pictures_and_asks_no_network(page: str) -> None:
    [picture] = [attributes for tag, attributes in Seen(page).tags if tag == "img"]
    kind, _, coded = str(picture["src"]).partition(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(coded) == PICTURE
    assert picture["alt"] == "Accuracy by method"
    for tag, attributes in Seen(page).tags:
        assert tag not in ("link", "iframe")
        assert tag != "script" or "src" not in attributes
    assert not re.search(r"https?://|@import|url\(", page)
