"""What others published."""

from __future__ import annotations

from report.accuracy.findings import Study
from report.accuracy.published import published_table, read_claims
from report.kit.document import Section
from report.kit.exhibits import Exhibits


def section(study: Study, exhibits: Exhibits) -> Section:
    """The claims that `report/published` holds."""
    return Section("What was published", (exhibits.table(published_table(read_claims())),))
