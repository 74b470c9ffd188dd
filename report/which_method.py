"""Where reports lead for the page that joins accuracy and step time of all methods."""

import os
from pathlib import Path

from markupsafe import Markup

from cser_bench.harness.records.shipped import SHIPPED, ships


def which_method_from(folder: Path) -> Markup:
    """Return the page in Markdown: a link from a folder of records that ships, the path from any other."""
    if not ships(folder):
        return Markup("`results/answers/which-method.md`")
    page = (SHIPPED / "answers" / "which-method.md").resolve()
    path = Path(os.path.relpath(page, folder.resolve())).as_posix()
    return Markup(f"[`which-method.md`]({path})")
