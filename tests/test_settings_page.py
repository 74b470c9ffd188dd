"""docs/settings.md says what docs/settings.py finds."""

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def test_the_page_on_settings_is_what_the_records_and_the_classes_give() -> None:
    script = runpy.run_path(str(DOCS / "settings.py"))
    assert (DOCS / "settings.md").read_text() == script["page"]()
