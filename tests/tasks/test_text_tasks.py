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
    for seed, name in enumerate(PACKAGES, 1):
        num_slots = bible(share, name, seed)
    return BibleVerses(
        num_train=25,
        num_test=15,
        num_test_chapters=3,
        num_slots=num_slots,
        vocabulary=300,
        positions=64,
    )


def load(task: CMUDict | BibleVerses, folder: Path, **spec: int) -> PairSamples:
    task_spec = TaskSpec(name="any", **spec)
    return task.load(folder, task_spec, CPU)


def texts(samples: PairSamples, split: str) -> list[tuple[str, str]]:
    pairs = getattr(samples, split)
    every = torch.arange(len(pairs.groups))
    sources = pairs.sentences(0, every)
    targets = pairs.sentences(1, every)
    if isinstance(samples.measure, BleuAndChrf):
        text = samples.measure.text
        source_texts = map(text, sources)
        target_texts = map(text, targets)
        return list(zip(source_texts, target_texts, strict=True))
    found = []
    for source, target in zip(sources, targets, strict=True):
        letters = [SYMBOLS[token - END - 1] for token in source]
        phones = [SYMBOLS[token - END - 1] for token in target]
        word = "".join(letters)
        pronunciation = " ".join(phones)
        found.append((word, pronunciation))
    return found


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
    assert len(train) == 25
    assert len(test) == 15
    assert not set(train) & set(test)
    again = load(task, folder)
    assert again.sha256 == samples.sha256
    assert again.vocabulary_sha256 == samples.vocabulary_sha256
    assert texts(again, "train") == train
    held = load(task, folder, held_out=5, num_train=10)
    kept = texts(held, "train")
    scored = texts(held, "evaluation")
    assert len(kept) == 10
    assert len(scored) == 5
    assert not set(kept) & set(scored)
    of_either = kept + scored
    assert set(of_either) <= set(train)
    changes_of_length = samples.evaluation.num_tokens.diff()
    assert (changes_of_length >= 0).all()


def test_a_batch_is_the_source_the_target_so_far_and_what_follows() -> None:
    sources = [[7, 8, 9], [5]]
    targets = [[4], [6, 7]]
    sides = (sources, targets, [0, 0])
    pairs = Pairs.of(sides, range(2), CPU)
    assert pairs.num_tokens.tolist() == [2, 3]
    assert pairs.lengths.tolist() == [4, 3]
    both = torch.arange(2)
    inputs, labels = pairs.batch(both)
    first, second = inputs.tolist()
    first_source, first_target = first
    second_source, second_target = second
    assert first_source == [7, 8, 9, END]
    assert first_target == [BEGIN, 4, END, PAD]
    assert second_source == [5, END, PAD, PAD]
    assert second_target == [BEGIN, 6, 7, END]
    first_labels, second_labels = labels.tolist()
    assert first_labels == [4, END, IGNORED, IGNORED]
    assert second_labels == [6, 7, END, IGNORED]
    assert inputs.dtype == torch.int64
    assert labels.dtype == torch.int64
    # What comes after the end is no part of a sentence.
    assert plain([BEGIN, 5, 6, END, 7]) == [5, 6]
    assert plain([END]) == []
    assert plain([4, 5]) == [4, 5]


def test_the_first_pronunciation_counts_without_stress(tmp_path: Path) -> None:
    samples = load(WORDS, tmp_path)
    train = texts(samples, "train")
    in_turn = ["AH", "B", "EH", "T"]
    for word, phones in train:
        num_phones = 1 + len(word) % 4
        expected = in_turn[:num_phones]
        assert phones == " ".join(expected)
    by_first_letter = []
    for word, _ in train:
        place = ord(word[0]) - ord("a")
        by_first_letter.append(place)
    assert samples.train.groups.tolist() == by_first_letter


def test_verses_are_pairs_by_their_place_and_chapters_stay_whole(
    tmp_path: Path,
) -> None:
    task = kjv(tmp_path)
    english = verses(1, 40)
    spanish = verses(2, 40)
    in_order = list(zip(english, spanish, strict=True))
    samples = load(task, tmp_path)
    train = texts(samples, "train")
    test = texts(samples, "evaluation")
    trained = [in_order.index(pair) for pair in train]
    scored = [in_order.index(pair) for pair in test]
    chapters_trained = {number // 5 for number in trained}
    chapters_scored = {number // 5 for number in scored}
    assert len(chapters_trained) == 5
    assert len(chapters_scored) == 3
    assert not chapters_trained & chapters_scored
    books = [int(number >= 20) for number in trained]
    assert samples.train.groups.tolist() == books


def test_verses_that_are_long_empty_or_of_odd_length_are_left_out_and_notes_titles_and_tags_are_no_words() -> (
    None
):
    too_long = " ".join("a" * 26)
    assert fits(TextPair("a b", "a"))
    assert not fits(TextPair("a b c", "a"))
    assert not fits(TextPair("", "a"))
    assert not fits(TextPair("a ", ""))
    as_many = " ".join("a" * 20)
    assert not fits(TextPair(too_long, as_many))
    osis = (
        '<title type="x">A title</title><w lemma="x">In the</w> be<i>gin</i>ning<note n="1">or '
        "<i>x</i></note>"
    )
    assert plain_text(osis + "<div/>was ¶ it") == "In the beginning was it"


def without_places(path: Path) -> None:
    path.with_suffix(".bzs").unlink()


def cut_by(suffix: str, num_bytes: int, path: Path) -> None:
    """Leave out the last bytes of the file with this suffix."""
    file = path.with_suffix(suffix)
    raw = file.read_bytes()
    file.write_bytes(raw[:-num_bytes])


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (without_places, "apt-get install sword-text-kjv"),
    "cut text": (partial(cut_by, ".bzz", 20), "nt.* are damaged"),
    "fewer verses": (partial(cut_by, ".bzv", 10), "another versification"),
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
    said = str(error.value)
    assert str(tmp_path) in said
    assert "\n" not in said


def test_another_dictionary_is_refused(tmp_path: Path) -> None:
    entries = partial(made_up_entries, 41)
    larger = replace(WORDS, entries=entries)
    with pytest.raises(DataError, match=r"41 of up to .* expected 40"):
        load(larger, tmp_path)
    other = replace(WORDS, sha256="0" * 64)
    with pytest.raises(DataError, match="other words or pronunciations"):
        load(other, tmp_path)


def test_other_texts_than_the_known_ones_are_refused(tmp_path: Path) -> None:
    task = kjv(tmp_path)
    samples = load(task, tmp_path)
    known = replace(task, sha256=samples.sha256)
    known.prepare(tmp_path)
    other_digest = replace(known, sha256="0" * 64)
    other_size = replace(known, num_test=14)
    words = r"other ones than they should be .* expected 25 and 1[45]"
    for other in (other_digest, other_size):
        with pytest.raises(DataError, match=words):
            other.prepare(tmp_path)


def test_sentences_beyond_the_positions_and_vocabularies_that_do_not_fit_are_refused(
    tmp_path: Path,
) -> None:
    task = kjv(tmp_path)
    few_positions = replace(task, positions=10)
    words = r"but with its end the model has positions for only 9"
    with pytest.raises(DataError, match=words):
        load(few_positions, tmp_path)
    large = replace(task, vocabulary=5_000)
    with pytest.raises(DataError, match="larger than the training texts allow"):
        load(large, tmp_path)
    small = replace(task, vocabulary=100)
    with pytest.raises(DataError, match="no room"):
        load(small, tmp_path)


def test_subwords_give_the_text_back_and_are_learnt_from_the_training_split_alone(
    tmp_path: Path,
) -> None:
    subwords = Subwords(verses(1, 30), 300)
    odd = ["¿Dónde está, señor?", "日本", "a  b"]
    encoded = subwords.encode(odd)
    for text, tokens in zip(odd, encoded, strict=True):
        decoded = subwords.decode(list(tokens))
        assert decoded == text
        assert min(tokens) > END
    (accented,) = subwords.encode(["é"])
    first_byte = list(accented)[:-1]
    decoded = subwords.decode(first_byte)
    assert "\ufffd" in decoded, "bytes that are no text"
    task = kjv(tmp_path)
    before = load(task, tmp_path)
    train, *_ = task._read(tmp_path)
    sentences = []
    for source, target, *_ in train:
        sentences += [source, target]
    expected = Subwords(sentences, 300)
    assert before.vocabulary_sha256 == expected.sha256


def test_phone_errors_are_insertions_deletions_and_substitutions_of_all_words() -> None:
    measure = PhoneErrors()
    said = [[1, 2, 3], [5, 6], [7], []]
    expected = [[1, 3], [6, 5], [8], [9, 9, 9]]
    sums = measure.sums(said, expected)
    assert sums == [1 + 2 + 1 + 3, 8]
    assert measure.metrics(sums) == {"phone_error_rate": 7 / 8}


def test_bleu_and_chrf_of_parts_are_those_of_the_whole_by_sacrebleu() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    said = verses(1, 30)
    others = verses(5, 30)
    expected = []
    for number, verse in enumerate(said):
        is_right = number % 3 != 0
        if is_right:
            expected.append(verse)
        else:
            expected.append(others[number])
    vocabulary = sorted({*said, *expected})
    measure = BleuAndChrf(lambda tokens: vocabulary[tokens[0]])
    said_tokens = [[vocabulary.index(text)] for text in said]
    expected_tokens = [[vocabulary.index(text)] for text in expected]
    parts = []
    for start in range(4):
        said_of_part = said_tokens[start::4]
        expected_of_part = expected_tokens[start::4]
        sums_of_part = measure.sums(said_of_part, expected_of_part)
        parts.append(sums_of_part)
    sums = [sum(column) for column in zip(*parts, strict=True)]
    found = measure.metrics(sums)
    bleu = sacrebleu.corpus_bleu(said, [expected])
    chrf = sacrebleu.corpus_chrf(said, [expected])
    assert found["bleu"] == pytest.approx(bleu.score / 100)
    assert found["chrf"] == pytest.approx(chrf.score / 100)
    assert 0 < found["bleu"] < 1
    assert set(measure.signatures()) == {"bleu", "chrf"}
