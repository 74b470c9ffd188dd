"""Sections of the accuracy report that are found by looking, a file each, in the order of their names.

A module has `section(study, exhibits)`: the section, or None where the records have nothing for it.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

from report.accuracy.findings import Study
from report.kit.document import Section
from report.kit.exhibits import Exhibits


def found_sections(study: Study, exhibits: Exhibits) -> Iterator[Section]:
    """Those of this folder."""
    for name in sorted(module.name for module in pkgutil.iter_modules(__path__)):
        section: Section | None = importlib.import_module(f"{__name__}.{name}").section(study, exhibits)
        if section is not None:
            yield section
