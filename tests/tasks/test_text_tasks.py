"""Words and Bibles: miniatures in their real formats are read and split, and bad ones refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from cser_bench.harness.spec.run import TaskSpec
from cser_bench.harness.tasks import DataError
from cser_bench.harness.tasks.cmudict import SYMBOLS, CMUDict
from cser_bench.harness.tasks.kjv_es import (
    MODULES,
    PACKAGES,
    BibleVerses,
    Subwords,
    TextPair,
    fits,
    plain_text,
    read_module,
)
from cser_bench.harness.tasks.pairs import (
    BEGIN,
    END,
    IGNORED,
    PAD,
    BleuAndChrf,
    Pairs,
    PairSamples,
    PhoneErrors,
    plain,
)
from tests.tasks.miniatures import bible, made_up_entries, verses

CPU = torch.device("cpu")
WORDS = CMUDict(
    num_train=25, num_test=15, sha256=None, entries=partial(made_up_entries, 40)
)


def kjv(share: Path) -> BibleVerses:
    """Eight chapters of five verses in both languages, three of which are scored."""
    num_slots = [bible(share, name, seed) for seed, name in enumerate(PACKAGES, 1)]
    return BibleVerses(25, 15, 3, num_slots[0], 300, 64)


def load(task: CMUDict | BibleVerses, folder: Path, **spec: int) -> PairSamples:
    return task.load(folder, TaskSpec(name="any", **spec), CPU)


def texts(samples: PairSamples, split: str) -> list[tuple[str, str]]:
    pairs = getattr(samples, split)
    every = torch.arange(len(pairs.groups))
    sources = pairs.sentences(0, every)
    targets = pairs.sentences(1, every)
    if isinstance(samples.measure, BleuAndChrf):
        return list(
            zip(
                map(samples.measure.text, sources),
                map(samples.measure.text, targets),
                strict=True,
            )
        )
    words, phones = (
        [[SYMBOLS[token - END - 1] for token in side] for side in sides]
        for sides in (sources, targets)
    )
    return list(zip(map("".join, words), map(" ".join, phones), strict=True))


@pytest.fixture(params=["words", "bibles"])
def task_and_folder(
    request: pytest.FixtureRequest, tmp_path: Path
) -> tuple[CMUDict | BibleVerses, Path]:
    if request.param == "words":
        return WORDS, tmp_path
    return kjv(tmp_path), tmp_path


def test_splits_share_nothing_and_are_the_same_each_time(
    task_and_folder: tuple[CMUDict | BibleVerses, Path],
) -> None:
    task, folder = task_and_folder
    samples = load(task, folder)
    train = texts(samples, "train")
    test = texts(samples, "evaluation")
    assert (len(train), len(test)) == (25, 15)
    assert not set(train) & set(test)
    again = load(task, folder)
    assert again.sha256 == samples.sha256
    assert again.vocabulary_sha256 == samples.vocabulary_sha256
    assert texts(again, "train") == train
    held = load(task, folder, held_out=5, num_train=10)
    kept = texts(held, "train")
    scored = texts(held, "evaluation")
    assert (len(kept), len(scored)) == (10, 5)
    assert not set(kept) & set(scored)
    assert set(kept) | set(scored) <= set(train)
    assert bool((samples.evaluation.num_tokens.diff() >= 0).all())


def test_a_batch_is_the_source_the_target_so_far_and_what_follows() -> None:
    pairs = Pairs.of(([[7, 8, 9], [5]], [[4], [6, 7]], [0, 0]), range(2), CPU)
    assert pairs.num_tokens.tolist() == [2, 3]
    assert pairs.lengths.tolist() == [4, 3]
    inputs, labels = pairs.batch(torch.arange(2))
    assert inputs.tolist() == [
        [[7, 8, 9, END], [BEGIN, 4, END, PAD]],
        [[5, END, PAD, PAD], [BEGIN, 6, 7, END]],
    ]
    assert labels.tolist() == [[4, END, IGNORED, IGNORED], [6, 7, END, IGNORED]]
    assert (inputs.dtype, labels.dtype) == (torch.int64, torch.int64)
    # What comes after the end is no part of a sentence.
    assert plain([BEGIN, 5, 6, END, 7]) == [5, 6]
    assert plain([END]) == []
    assert plain([4, 5]) == [4, 5]


def test_the_first_pronunciation_counts_without_stress(tmp_path: Path) -> None:
    folder = tmp_path
    for word, phones in texts(load(WORDS, folder), "train"):
        assert phones == " ".join(["AH", "B", "EH", "T"][: 1 + len(word) % 4])
    groups = load(WORDS, folder).train.groups
    assert groups.tolist() == [
        ord(word[0]) - ord("a") for word, _ in texts(load(WORDS, folder), "train")
    ]


def test_verses_are_pairs_by_their_place_and_chapters_stay_whole(
    tmp_path: Path,
) -> None:
    task = kjv(tmp_path)
    english = verses(1, 40)
    spanish = verses(2, 40)
    place = {
        pair: number for number, pair in enumerate(zip(english, spanish, strict=True))
    }
    samples = load(task, tmp_path)
    both = [
        [place[pair] for pair in texts(samples, split)]
        for split in ("train", "evaluation")
    ]
    chapters = [{number // 5 for number in numbers} for numbers in both]
    assert [len(each) for each in chapters] == [5, 3]
    assert not chapters[0] & chapters[1]
    assert samples.train.groups.tolist() == [int(number >= 20) for number in both[0]]


def test_verses_that_are_long_empty_or_of_odd_length_are_left_out_and_notes_titles_and_tags_are_no_words() -> (
    None
):
    pairs = {
        "a b": "a",
        "a b c": "a",
        "": "a",
        "a ": "",
        " ".join("a" * 26): " ".join("a" * 20),
    }
    assert [fits(TextPair(*pair)) for pair in pairs.items()] == [
        True,
        False,
        False,
        False,
        False,
    ]
    osis = (
        '<title type="x">A title</title><w lemma="x">In the</w> be<i>gin</i>ning<note n="1">or '
        "<i>x</i></note>"
    )
    assert plain_text(osis + "<div/>was ¶ it") == "In the beginning was it"


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (
        lambda path: path.with_suffix(".bzs").unlink(),
        "apt-get install sword-text-kjv",
    ),
    "cut text": (
        lambda path: rewrite(path.with_suffix(".bzz"), lambda raw: raw[:-20]),
        "nt.* are damaged",
    ),
    "fewer verses": (
        lambda path: rewrite(path.with_suffix(".bzv"), lambda raw: raw[:-10]),
        "another versification",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_bibles_are_refused_in_a_sentence(damage: str, tmp_path: Path) -> None:
    name = "engKJV2006eb"
    num_slots = bible(tmp_path, name, 1)
    read_module(name, tmp_path, num_slots)
    harm, words = DAMAGE[damage]
    harm(tmp_path / MODULES / name / "nt.bzs")
    with pytest.raises(DataError, match=words) as error:
        read_module(name, tmp_path, num_slots)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_another_dictionary_is_refused(tmp_path: Path) -> None:
    for task, said in (
        (
            replace(WORDS, entries=partial(made_up_entries, 41)),
            r"41 of up to .* expected 40",
        ),
        (replace(WORDS, sha256="0" * 64), "other words or pronunciations"),
    ):
        with pytest.raises(DataError, match=said):
            load(task, tmp_path)


def test_other_texts_than_the_known_ones_are_refused(tmp_path: Path) -> None:
    task = kjv(tmp_path)
    known = replace(task, sha256=load(task, tmp_path).sha256)
    known.prepare(tmp_path)
    for other in (replace(known, sha256="0" * 64), replace(known, num_test=14)):
        with pytest.raises(
            DataError, match=r"other ones than they should be .* expected 25 and 1[45]"
        ):
            other.prepare(tmp_path)


def test_sentences_beyond_the_positions_and_vocabularies_that_do_not_fit_are_refused(
    tmp_path: Path,
) -> None:
    task = kjv(tmp_path)
    with pytest.raises(
        DataError, match=r"but with its end the model has positions for only 9"
    ):
        load(replace(task, positions=10), tmp_path)
    for size, words in (
        (5_000, "larger than the training texts allow"),
        (100, "no room"),
    ):
        with pytest.raises(DataError, match=words):
            load(replace(task, vocabulary=size), tmp_path)


def test_subwords_give_the_text_back_and_are_learnt_from_the_training_split_alone(
    tmp_path: Path,
) -> None:
    subwords = Subwords(verses(1, 30), 300)
    odd = ["¿Dónde está, señor?", "日本", "a  b"]
    assert [subwords.decode(tokens) for tokens in subwords.encode(odd)] == odd  # type: ignore[arg-type]
    assert all(min(tokens) > END for tokens in subwords.encode(odd))
    assert "\ufffd" in subwords.decode(list(subwords.encode(["é"])[0])[:-1]), (
        "bytes that are no text"
    )
    task = kjv(tmp_path)
    before = load(task, tmp_path)
    fewer = task._read(tmp_path)[0]
    assert (
        before.vocabulary_sha256
        == Subwords([text for pair in fewer for text in pair[:2]], 300).sha256
    )


def test_phone_errors_are_insertions_deletions_and_substitutions_of_all_words() -> None:
    measure = PhoneErrors()
    sums = measure.sums([[1, 2, 3], [5, 6], [7], []], [[1, 3], [6, 5], [8], [9, 9, 9]])
    assert sums == [1 + 2 + 1 + 3, 8]
    assert measure.metrics(sums) == {"phone_error_rate": 7 / 8}


def test_bleu_and_chrf_of_parts_are_those_of_the_whole_by_sacrebleu() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    said = verses(1, 30)
    expected = [
        a if n % 3 else b
        for n, (a, b) in enumerate(zip(verses(1, 30), verses(5, 30), strict=True))
    ]
    vocabulary = dict(enumerate(dict.fromkeys([*said, *expected])))
    number = {text: key for key, text in vocabulary.items()}
    measure = BleuAndChrf(lambda tokens: vocabulary[tokens[0]])
    tokens = [[[number[text]] for text in side] for side in (said, expected)]
    parts = [
        measure.sums(tokens[0][start::4], tokens[1][start::4]) for start in range(4)
    ]
    found = measure.metrics([sum(column) for column in zip(*parts, strict=True)])
    assert found["bleu"] == pytest.approx(
        sacrebleu.corpus_bleu(said, [expected]).score / 100
    )
    assert found["chrf"] == pytest.approx(
        sacrebleu.corpus_chrf(said, [expected]).score / 100
    )
    assert 0 < found["bleu"] < 1
    assert set(measure.signatures()) == {"bleu", "chrf"}
