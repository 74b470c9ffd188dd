"""How figures look: one look per method, type that can be read, vectors whose bytes repeat."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure as Drawing
from matplotlib.text import Text

from harness.records.timings import Timing
from report.__main__ import main
from report.accuracy.figure_drift import drift_of, found_drift
from report.accuracy.figure_paper import paper_models
from report.accuracy.findings import study_of
from report.accuracy.records import read_records
from report.kit.looks import LOOKS, look_of
from report.kit.plotting import SIZE
from report.synthetic import Design, make_experiment, make_tuning
from tests.report.made_up_regime import Map, records_of, write_records
from tests.report.made_up_timings import write_full

SHIPPED = Path(__file__).parents[2] / "results/speedups"


def lost(method: str, models: float, steps: int, ratio: float) -> float:
    return 3.0 if method == "EF-SGD" and models < 30 else 1 / (1 + models / 10)


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[Text]:
    """Every text of every figure that is saved from now on."""
    found: list[Text] = []
    save = Drawing.savefig

    def watched(figure: Drawing, *arguments: Any, **options: Any) -> None:
        found.extend(figure.findobj(Text))
        save(figure, *arguments, **options)

    monkeypatch.setattr(Drawing, "savefig", watched)
    return found


def test_no_two_methods_look_alike() -> None:
    assert len({(look.colour, look.marker, look.dashes) for look in LOOKS.values()}) == len(LOOKS)
    assert len({look.colour.lower() for look in LOOKS.values()}) == len(LOOKS)


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("local SGD", "local SGD"), ("Local SGD", "local SGD"), ("EF-SGD block", "EF-SGD"),
        ("EF-SGD, top-k", "EF-SGD top-k"), ("EF-SGD (top-k)", "EF-SGD top-k"), ("Final average", "final average"),
        ("SGD accumulate", "SGD accumulate"), ("SGD, accumulated", "SGD accumulate"), ("CSER-PL", "CSER-PL"),
        ("mcser", "M-CSER"), ("QSparse-local-SGD", "QSparse-local-SGD"), ("DDP, fp16", "DDP, fp16"),
    ],
)  # fmt: skip
def test_a_label_finds_its_method(label: str, name: str) -> None:
    assert look_of(label) == LOOKS[name]


def test_a_variant_differs_by_its_dashes_alone() -> None:
    variants = [
        look_of(f"M-CSER{rest}") for rest in ("", ", overlapped", ", ratio 32", ", ratio 1024", ", of tomorrow")
    ]
    assert {(look.colour, look.marker) for look in variants} == {(LOOKS["M-CSER"].colour, LOOKS["M-CSER"].marker)}
    assert len({look.dashes for look in variants}) == len(variants)
    assert look_of("DDP, PowerSGD rank 2").colour == LOOKS["PowerSGD"].colour


def test_an_unknown_method_gets_a_look_that_is_nobodys() -> None:
    assert look_of("Sketched SGD of tomorrow") == look_of("Sketched SGD of tomorrow")
    assert look_of("Sketched SGD of tomorrow").colour not in {look.colour for look in LOOKS.values()}


def test_the_shipped_speed_methods_look_different() -> None:
    records = [Timing.model_validate_json(path.read_text()) for path in sorted(SHIPPED.glob("timing-*.json"))]
    labels = {method.label for record in records for method in record.methods}
    looks = {label: look_of(label) for label in labels}
    assert len(labels) > 15 and len({(look.colour, look.marker, look.dashes) for look in looks.values()}) == len(labels)


# Machado, Oliveira and Fernandes (2009): what deuteranopes and protanopes see, on linear RGB.
_SEEN = {
    "usual": np.eye(3),
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
}


def _lab(colour: str, seen: Any) -> Any:
    rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.asarray(seen) @ np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ np.clip(linear, 0, 1) / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("seen", _SEEN)
def test_colours_of_methods_are_told_apart_by_the_colour_blind(seen: str) -> None:
    colours = [look.colour for name, look in LOOKS.items() if name not in ("SGD accumulate", "final average", "alone")]
    labs = [_lab(colour, _SEEN[seen]) for colour in colours if colour != LOOKS["DDP, fp16"].colour]
    assert min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(labs, 2)) > 20


def test_all_type_can_be_read_and_vectors_repeat(texts: list[Text], tmp_path: Path) -> None:
    folder = tmp_path / "experiment"
    write_records(Map(lost, seeds={150: (1, 2, 3), 25: (1, 2)}), folder)
    for output in ("first", "again"):
        assert main([str(folder), "--output", str(tmp_path / output)]) == 0
    pictures = sorted(path.name for path in (tmp_path / "first/figures").iterdir())
    assert {"accuracy_against_models.pdf", "regime.pdf", "drift.pdf", "progress.pdf"} <= set(pictures)
    for name in pictures:
        assert (tmp_path / "first/figures" / name).read_bytes() == (tmp_path / "again/figures" / name).read_bytes()
        assert (tmp_path / "first/figures" / Path(name).with_suffix(".png")).exists()
    assert (tmp_path / "first/report.pdf").read_bytes() == (tmp_path / "again/report.pdf").read_bytes()
    assert min(text.get_fontsize() for text in texts if text.get_text()) >= SIZE


def test_type_of_speed_and_tuning_figures_can_be_read(texts: list[Text], tmp_path: Path) -> None:
    assert main([str(write_full(tmp_path / "study")), "--output", str(tmp_path / "speed")]) == 0
    design = Design(ratios=(64,), seeds=(1, 2), grid=(0.1, 0.4))
    make_experiment(tmp_path / "results" / design.name, design)
    make_tuning(tmp_path / "results" / f"{design.name}_tuning", design)
    assert main([str(tmp_path / "results" / design.name), "--output", str(tmp_path / "accuracy")]) == 0
    assert len(texts) > 200 and min(text.get_fontsize() for text in texts if text.get_text()) >= SIZE


def test_no_vector_is_left_where_nothing_is_drawn(tmp_path: Path) -> None:
    make_experiment(tmp_path / "results", Design(ratios=(64,), none_run=True))
    old = tmp_path / "report/figures/drift.pdf"
    old.parent.mkdir(parents=True)
    old.write_text("an old picture")
    assert main([str(tmp_path / "results"), "--output", str(tmp_path / "report")]) == 0
    assert not old.exists()


def test_the_paper_sends_what_its_steps_and_ratios_say() -> None:
    models = paper_models()
    assert [round(sent) for sent in models["CIFAR-100"].values()] == [76, 305, 2438]
    assert [round(sent) for sent in models["ImageNet"].values()] == [586, 2346, 18766]


def test_drift_takes_the_tuning_runs_at_one_rate_where_the_rows_differ(tmp_path: Path) -> None:
    design = Design(ratios=(64, 256), seeds=(1,), grid=(0.05, 0.1))
    make_experiment(tmp_path / design.name, design)
    make_tuning(tmp_path / f"{design.name}_tuning", design)
    study = study_of(read_records(tmp_path / design.name))
    tuning = read_records(tmp_path / f"{design.name}_tuning")
    own, one = drift_of(study, None), drift_of(study, tuning)
    assert own.learning_rate is None and "own learning rates" in found_drift(own)
    rates = {rows.row.learning_rate for column in one.columns for _, rows in column.rows}
    assert one.from_tuning and rates == {one.learning_rate} and not one.missing


def test_drift_of_rows_at_one_rate_is_their_own() -> None:
    drift = drift_of(study_of(records_of(Map(lost))), None)
    assert drift.learning_rate == 0.01 and not drift.from_tuning
