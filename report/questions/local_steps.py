"""Question 25: error reset against local steps, by network and by load.

Besides there is what a synchronous tail changes.
"""

from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd

from cser_bench.report.frame import LOAD_TOLERANCE
from cser_bench.report.questions.evidence import Answer, Compared, Evidence, Part, nearest_first
from cser_bench.report.questions.losses import MOST_ROWS, tied
from cser_bench.report.questions.one_load import link_load, plain_local_rows, rows_at_one_load
from cser_bench.report.questions.relatives import declared_by_network
from cser_bench.report.regime import tells
from cser_bench.report.statistics import BETTER, BETTER_BY_MARGIN, EQUAL, WORSE, WORSE_BY_MARGIN
from cser_bench.report.verdicts import verdict, with_words
from cser_bench.report.wording import amount, code

LOADS_IN_WORDS = {
    4.0: "four times",
    2.0: "twice",
    0.5: "half",
    0.25: "a quarter of",
    0.125: "an eighth of",
}
"""How one load of a link is called beside another."""


def would_local_sgd_do(evidence: Evidence) -> Answer:
    """Answer question 25: error reset less local steps, by kind of network.

    Besides it has one average at the end, and a synchronous tail.
    """
    quoted = evidence["reference"]
    asked_first = _of(quoted, *_pairs_asked_first(quoted))
    lines = evidence.contrasts([asked_first])
    main = evidence.contrasts(_of_other_networks(evidence))
    loads = evidence.contrasts(_of_other_loads(evidence))
    ties = tied(evidence, ("topk", "local"), ("blocks", "local"))
    tails = []
    after = []
    for known in evidence.all_of("tail"):
        if known.row("tail"):
            tails.append(_tail(known))
        elif known.is_whole:
            after.append(_tails(known))
    against_local = lines[lines["reference"] != quoted.baseline]
    compared = pd.concat([main, against_local], ignore_index=True)
    # Of each network the first pair: that which was declared, if any was.
    compared["is_open"] = compared["verdict"].isna()
    by_network = compared.sort_values("is_open", kind="stable").drop_duplicates("network")
    # Back in the order of networks, which the sort has broken.
    shown = compared.loc[sorted(by_network.index)].drop(columns="is_open")
    shown["times_the_load"] = [_times_the_load(evidence, line) for line in shown.to_dict("records")]
    verdicts = shown["verdict"]
    everything = [lines, main, loads, ties]
    everything += [part["rows"] for part in [*tails, *after]]
    filled = [table for table in everything if len(table)]
    frame = pd.concat(filled, ignore_index=True)
    bounds = declared_by_network(evidence, "bounds")
    names = [*frame["experiment"].unique()]
    names += [part["name"] for part in bounds]
    topk_load = link_load(quoted, quoted.row("topk"))
    local_load = link_load(quoted, quoted.row("local"))
    numbers = {
        "lines": lines.to_dict("records"),
        "ends": evidence.elsewhere(evidence.other_networks, ("average_at_end", "baseline")),
        "heavier": topk_load / local_load,
        "same": _at_shorter_trials(evidence),
        "ties": ties.to_dict("records"),
        "num_networks": len(shown),
        "judged": int(verdicts.notna().sum()),
        "asked_of_more": int((shown["kind"] == "equivalence").sum()),
        "better": int(verdicts.isin((BETTER, BETTER_BY_MARGIN)).sum()),
        "equal": int((verdicts == EQUAL).sum()),
        "worse": int(verdicts.isin((WORSE, WORSE_BY_MARGIN)).sum()),
        "pairs": with_words(compared),
        "loads": loads.to_dict("records"),
        "tails": tails,
        "after": after,
        "bounds": bounds,
        "names": [code(name) for name in names if name != quoted.name],
    }
    return Answer(frame, numbers, rows=shown.head(MOST_ROWS))


def _times_the_load(evidence: Evidence, line: Mapping[Hashable, Any]) -> float:
    """Return what a row puts on a link, as a multiple of what its reference puts there."""
    known = evidence.experiment(line["experiment"])
    assert known is not None, "the line is from it"
    return link_load(known, line["row"]) / link_load(known, line["reference"])


def _of(known: Compared, *pairs: tuple[str, str], network: str | None = None) -> Part:
    """Return pairs of an experiment, with the network that the table names."""
    columns = {"network": network or known.network, "experiment": known.name}
    return known, pairs, columns


def _pairs_asked_first(quoted: Compared) -> list[tuple[str, str]]:
    """Return both forms of error reset against local steps, and one average at the end."""
    return quoted.pairs(("topk", "local"), ("blocks", "local"), ("average_at_end", "baseline"))


def _of_other_networks(evidence: Evidence) -> list[Part]:
    """Return error reset against local steps, where an experiment can tell a loss."""
    parts = []
    for known in nearest_first(evidence.all_of("network", "task")):
        if not known.frames.has_role("reference") and tells(known.frames):
            pairs = known.pairs(("blocks", "local"), ("reset", "local"))
            parts.append(_of(known, *pairs))
    return parts


def _of_other_loads(evidence: Evidence) -> list[Part]:
    """Return error reset against local steps at other loads than the network's own experiment.

    That is error reset by blocks where more or less is sent, and with top-k where it loads a link
    as local steps do.
    """
    parts = []
    for known in nearest_first(evidence.all_of("loads", "methods")):
        if not known.is_whole or known.frames.has_role("search"):
            continue
        own = evidence.first("network", network=known.about.network)
        if own is None or own.row("local") is None:
            continue
        main_load = link_load(own, own.row("local"))
        parts += _blocks_at_other_loads(known, main_load)
        parts += _topk_at_one_load(known)
    return parts


def _blocks_at_other_loads(known: Compared, main_load: float) -> list[Part]:
    """Return error reset by blocks against local steps at loads that are not `main_load`."""
    parts = []
    for ratio in sorted(plain_local_rows(known)):
        rows = rows_at_one_load(known, ratio)
        if "blocks" not in rows:
            continue
        load = link_load(known, rows["local"]) / main_load
        if abs(load - 1) > LOAD_TOLERANCE:
            pair = (rows["blocks"], rows["local"])
            network = f"{known.network}, {load_in_words(load)} the load"
            parts.append(_of(known, pair, network=network))
    return parts


def _topk_at_one_load(known: Compared) -> list[Part]:
    """Return error reset with top-k against local steps, where both load a link alike."""
    parts = []
    for topk, local in known.pairs(("topk", "local")):
        load = link_load(known, topk) / link_load(known, local)
        if abs(load - 1) <= LOAD_TOLERANCE:
            network = f"{known.network}, top-k at the same load"
            parts.append(_of(known, (topk, local), network=network))
    return parts


def load_in_words(load: float) -> str:
    """Say how many times another load this one is, as before "the load"."""
    for times, words in LOADS_IN_WORDS.items():
        if abs(load / times - 1) <= LOAD_TOLERANCE:
            return words
    return f"{amount(load)} times"


def _at_shorter_trials(evidence: Evidence) -> list[dict[str, Any]]:
    """Return the same contrasts in the experiment that asked them first, each with its name."""
    search = evidence.first("search")
    if search is None:
        return []
    pairs = search.pairs(("topk", "local"), ("blocks", "local"))
    named = {"experiment": search.name}
    return [search.contrast(*pair) | named for pair in pairs]


def _tail(known: Compared) -> dict[str, Any]:
    """Return what a tail changes, and what it does beside rows that send as much."""
    tail = str(known.row("tail"))
    pairs = [(row, other) for row, other in known.contrasts if row == tail]
    rows = known.contrasts_of(pairs)
    rows = rows.assign(network=known.network, experiment=known.name)
    intervals = []
    names = []
    for line in rows.to_dict("records"):
        interval = known.value(line["reference"], "sync_interval")
        intervals.append(interval)
        names.append(f"{line['other']}, H = {interval:g}")
    rows["other"] = names
    is_own = rows["reference"] == known.row("local")
    others = rows.assign(every=intervals)[~is_own]
    return {
        "rows": rows,
        "network": known.the_network,
        "num_steps": known.regime["num_steps"],
        "share": 1 - known.value(tail, "restart.at"),
        "label": known.value(known.row("local"), "label"),
        "own": rows[is_own].to_dict("records"),
        "others": others.to_dict("records"),
    }


def _tails(known: Compared) -> dict[str, Any]:
    """Return what tails change, and in `left` what each row then loses against the baseline."""
    rows = known.contrasts_of(known.contrasts)
    rows = rows.assign(network=known.network, experiment=known.name, baseline=known.baseline)
    is_against_baseline = rows["reference"] == known.baseline
    against_baseline = rows[is_against_baseline].set_index("row")
    changed = rows[~is_against_baseline].to_dict("records")
    for line in changed:
        line["left"] = None
        if line["row"] in against_baseline.index:
            left = against_baseline.loc[line["row"]].to_dict()
            line["left"] = left
            line["shown"] = verdict(left)
    return {
        "rows": rows,
        "network": known.the_network,
        "baseline": known.value(known.baseline, "label"),
        "lines": changed,
    }
