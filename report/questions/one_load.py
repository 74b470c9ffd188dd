"""Methods at one load of a link: their rows, and what each loses.

Besides there is how error reset by blocks and local steps differ.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from cser_bench.report.frame import LOAD_TOLERANCE
from cser_bench.report.questions.evidence import Compared, Evidence, Speaker
from cser_bench.report.statistics import difference

ORDERED: dict[Speaker, str] = {
    "feedback": "error feedback with top-k",
    "local": "local steps",
    "blocks": "error reset by blocks",
}
"""Methods that are put in order, by what their rows speak for."""


def tuned_rows(known: Compared) -> pd.DataFrame:
    """Return the experiment's rows of its own length and rule, by name."""
    rows = known.frames.rows
    is_own = rows["base"].isna() & (rows["rule"] == "held_out")
    return rows[is_own].set_index("row")


def link_load(known: Compared, row: str | None) -> float:
    """Return what a row puts on a worker's link, in models."""
    return float(known.value(row, "link_models"))


def plain_local_rows(known: Compared) -> dict[float, str]:
    """Return the rows of local steps that have nothing else set, by ratio."""
    ratios = tuned_rows(known)["ratio"]
    plain = {}
    for row in known.frames.experiment.rows:
        name = row.row
        is_plain = row.settings.keys() == {"sync_interval"}
        # A row of another length or rule is not the experiment's own.
        if not is_plain or name not in ratios.index:
            continue
        if known.is_of_family(name, "local steps"):
            plain[float(ratios[name])] = name
    return plain


def rows_at_one_load(known: Compared, ratio: float | None = None) -> dict[Speaker, str]:
    """Return the row of each method that puts on a link what local steps at this ratio do.

    Error reset is the form with the paper's blocks. Where a method was run in two forms, as error
    feedback on gradients and on updates, the one with the better mean score speaks for it.

    Args:
        ratio: None is the main ratio.
    """
    wanted = ratio or known.frames.experiment.main_ratio or 0.0
    local = plain_local_rows(known).get(wanted)
    if local is None:
        return {}
    rows: Any = tuned_rows(known)
    loads = rows["link_models"] / rows.loc[local, "link_models"]
    near = rows[(loads - 1).abs() <= LOAD_TOLERANCE]
    chosen: dict[Speaker, str] = {"local": local}
    best: dict[Speaker, float] = {}
    for name, line in near.iterrows():
        row = str(name)
        speaker = _speaker_of(known, row, line)
        if speaker is None or not known.has(row):
            continue
        score = known.frames.done(row).mean()
        if speaker not in best or score > best[speaker]:
            best[speaker] = score
            chosen[speaker] = row
    return chosen


def _speaker_of(known: Compared, row: str, line: Any) -> Speaker | None:
    """Return what a row speaks for at one load; None for nothing.

    That is error feedback with top-k at every step, or error reset with blocks for both of its
    compressors.
    """
    if known.is_of_family(row, "error feedback"):
        is_topk = line.get("compressor.kind") == "top_k"
        is_at_every_step = pd.isna(line.get("sync_interval"))
        if is_topk and is_at_every_step:
            return "feedback"
    if known.is_of_family(row, "error reset"):
        gradient_kind = line.get("gradient_compressor.kind")
        error_kind = line.get("error_compressor.kind")
        if gradient_kind == error_kind == "block":
            return "blocks"
    return None


def with_all_methods(evidence: Evidence, data: str) -> list[Compared]:
    """Return of each network the first experiment that ran all three methods at one load.

    Args:
        data: "images" or "text".
    """
    found: dict[str, Compared] = {}
    for known in evidence.all_of("network", "task", "loads"):
        network = known.about.network
        if known.about.data != data or network in found:
            continue
        if rows_at_one_load(known).keys() >= ORDERED.keys():
            found[network] = known
    return list(found.values())


def losses_at_one_load(experiments: Sequence[Compared]) -> pd.DataFrame:
    """Return what each method loses against everything sent, where an experiment ran all three.

    A positive number is a loss. Columns: network, experiment, parameters, link_models (of local
    steps), and a column of losses for each method.
    """
    lines = []
    for known in experiments:
        lost = _lost(known, rows_at_one_load(known))
        if lost is not None:
            named = {"network": known.network, "experiment": known.name}
            lines.append(named | {"parameters": known.num_parameters} | lost)
    columns = ["network", "experiment", "parameters", "link_models", *ORDERED.values()]
    return pd.DataFrame(lines, columns=columns)


def _lost(known: Compared, rows: dict[Speaker, str]) -> dict[str, float] | None:
    """Return the load of local steps, and what each method loses; None where a row is missing."""
    if not rows.keys() >= ORDERED.keys():
        return None
    losses = {"link_models": link_load(known, rows["local"])}
    for speaker, name in ORDERED.items():
        contrast = known.contrast(rows[speaker], known.baseline)
        losses[name] = -float(contrast["estimate"])
    return losses


def orders_at_other_loads(
    evidence: Evidence, shown: Sequence[Compared]
) -> Iterator[dict[str, Any]]:
    """Yield the order of the three methods' mean losses at other loads of a link that were run.

    The heaviest load of a network comes first.

    Args:
        shown: experiments whose load is told already.
    """
    told = {}
    for known in shown:
        local = rows_at_one_load(known)["local"]
        told[known.about.network] = link_load(known, local)
    for known in evidence.all_of("loads"):
        for ratio in sorted(plain_local_rows(known)):
            lost = _lost(known, rows_at_one_load(known, ratio))
            if lost is None:
                continue
            load = lost.pop("link_models")
            network = known.about.network
            if network in told and abs(load / told[network] - 1) <= LOAD_TOLERANCE:
                continue
            order = sorted(lost, key=lambda name: lost[name])
            yield {"network": known.the_network, "load": load, "order": order}


def resets_against_local(experiments: Sequence[Compared]) -> pd.DataFrame:
    """Return what error reset by blocks loses more than local steps at the same load of a link.

    Columns: network, experiment, estimate, low, high (95 %), standard_error; a positive estimate is
        a loss.
    """
    lines = []
    for known in experiments:
        rows = rows_at_one_load(known)
        if not {"blocks", "local"} <= rows.keys():
            continue
        apart = difference(known.frames, rows["blocks"], rows["local"])
        if apart is not None:
            low, high = apart.interval()
            lines.append(
                {
                    "network": known.network,
                    "experiment": known.name,
                    "estimate": -apart.estimate,
                    "low": -high,
                    "high": -low,
                    "standard_error": apart.standard_error,
                }
            )
    columns = ["network", "experiment", "estimate", "low", "high", "standard_error"]
    return pd.DataFrame(lines, columns=columns)
