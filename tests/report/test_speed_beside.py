"""What neighbours save and what others published, against numbers worked out by hand."""

from __future__ import annotations

import pytest

from report.speed.tables_neighbours import neighbour_seconds, neighbours_table
from report.speed.tables_published import (
    compute_seconds,
    published,
    published_links_table,
    sync_seconds,
    utilisation,
)


def test_where_bytes_rule_a_ring_saves_nothing_and_where_latency_does_nearly_all() -> None:
    # 8 MB at 8 Mb/s take 8 s: 1.75 of them in an all-reduce, two in a ring, one with a peer; a microsecond a hop.
    assert neighbour_seconds(8_000_000, 1e-6, 8e6) == pytest.approx((14.0, 16.0, 8.0), rel=1e-5)
    # A byte at 8 Gb/s takes a nanosecond: 14 hops of a second, or one.
    assert neighbour_seconds(1, 1.0, 8e9) == pytest.approx((14.0, 1.0, 1.0), rel=1e-6)


def test_the_table_says_what_rules() -> None:
    # Of a whole model at 100 Mb/s bytes take 14 s and latency 14 times 10 microseconds; of 1/256 at 100 Gb/s 14 ms of
    # latency stand against 14 microseconds.
    rows = {tuple(cell.text for cell in row[:3]): row[3].text for row in neighbours_table().rows}
    assert rows["a model", "0.01 ms", "100 Mb/s"] == "bytes"
    assert rows["1/256 of it", "1 ms", "100 Gb/s"] == "latency"


def test_the_published_points_are_all_there() -> None:
    file, points = published()
    assert file["num_workers"] == 4 and file["num_parameters"] == 30_800_000
    found = {(point.bits_per_second, point.sync_interval): point.utilisation for point in points}
    assert len(found) == 16
    assert found[50e6, 1] == pytest.approx(0.0007) and found[5e9, 128] == pytest.approx(0.87)


def test_the_models_one_unknown_is_solved_from_a_point_and_predicts_the_rest() -> None:
    # 123.2 MB in a ring of four: 1.5 of them over the link, at 1 Gb/s 1.4784 s. 1.74 % of the time is compute.
    sync = sync_seconds(30_800_000, 4, 1e9)
    assert sync == pytest.approx(1.5 * 123.2e6 * 8 / 1e9)
    [point] = [p for p in published()[1] if (p.bits_per_second, p.sync_interval) == (1e9, 1)]
    step = compute_seconds(point, sync)
    assert step / (step + 1.4784) == pytest.approx(0.0174)
    assert utilisation(step, 1, sync) == pytest.approx(0.0174)
    # At 5 Gb/s and H = 128: 128 steps against a fifth of that time.
    modelled = 128 * step / (128 * step + 1.4784 / 5)
    rows = [[cell.text for cell in row] for row in published_links_table(None).rows]
    at = next(place for place, row in enumerate(rows) if row[0] == "5 Gb/s")
    assert rows[at][-1] == "87"
    assert rows[at + 1][-1] == f"{100 * modelled:.3g} (+{100 * (modelled / 0.87 - 1):.1f} %)"


def test_how_far_off_it_is_counts_all_points_but_the_solved_one() -> None:
    table = published_links_table(None)
    assert [cell.text for row in table.rows for cell in row if "solved" in cell.text] == ["solved"]
    errors = [
        float(cell.text.split("(")[1].split(" %")[0].replace("−", "-"))
        for row in table.rows
        for cell in row[3:]
        if "(" in cell.text
    ]
    assert len(errors) == 15
    assert f"Of 15 utilisations that were published, {sum(abs(e) <= 10 for e in errors)} are within 10 %" in table.found
    assert f"the worst {max(errors, key=abs):+.1f} %" in table.found
