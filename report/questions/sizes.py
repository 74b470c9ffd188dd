"""What answers say of size and length: the laws of the gap, from experiments that cross the two."""

from typing import Any

from cser_bench.report.law.section import law_context, law_tables
from cser_bench.report.questions.evidence import Compared, Evidence


def laws_of(evidence: Evidence) -> list[dict[str, Any]]:
    """Return what the law of each experiment on sizes says, of those whose fitted runs are done.

    Keys: name, folder (in results/), network, sizes and lengths (the least and the most that was
    fitted), headline (of how many methods what is shown), findings (sentences), misses (of the law,
    a sentence each), of_all (the findings with what was held back in the fit, without a verdict),
    num_predicted and num_inside (cells that were held back and are done, and those of them inside
    of their predicted interval).
    """
    laws = []
    for known in evidence.all_of("size"):
        if not _is_fitted_whole(known):
            continue
        tables = law_tables(known.frames)
        context = law_context(known.frames, tables)
        if not context["law_findings"]:
            continue
        cells = tables["law_cells"]
        fitted = cells[~cells["held_back"]]
        found = tables["law_predictions"].dropna(subset="found")
        laws.append(
            {
                "name": known.name,
                "folder": _folder_in_results(known),
                "network": known.about.network,
                "sizes": (fitted["num_parameters"].min(), fitted["num_parameters"].max()),
                "lengths": (fitted["num_steps"].min(), fitted["num_steps"].max()),
                "headline": context["law_headline"],
                "findings": context["law_findings"],
                "misses": context["law_misses"],
                "of_all": context["law_of_all"],
                "num_predicted": len(found),
                "num_inside": int(found["is_inside"].sum()),
            }
        )
    return laws


def _is_fitted_whole(known: Compared) -> bool:
    """Tell whether all runs that a law is fitted to are done."""
    held_back = [row.row for row in known.frames.experiment.rows if row.held_back]
    runs = known.frames.runs
    fitted = runs[~runs["row"].isin(held_back)]
    return not fitted["status"].isin(("missing", "failed")).any()


def _folder_in_results(known: Compared) -> str:
    """Return where an experiment's report lies: those that others are compared with lie deeper."""
    folder = known.frames.folder
    if folder.parent.name == "reference":
        return f"reference/{folder.name}"
    return folder.name
