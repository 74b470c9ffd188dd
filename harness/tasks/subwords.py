"""Subwords by byte-pair encoding (Sennrich et al., ACL 2016), learnt by the library `tokenizers`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy

from harness.tasks.errors import DataError
from harness.tokens import NUM_SPECIAL

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIAL = ["<pad>", "<begin>", "<end>"]
LEAST = NUM_SPECIAL + 256
"""Any text is made of bytes, so no token is ever unknown."""


class Subwords:
    """One vocabulary for both languages.

    Args:
        texts: to learn from, of both languages.
        size: of the vocabulary; the first tokens are those of `harness.tokens`.

    Raises:
        DataError: the texts do not have so many subwords.
    """

    def __init__(self, texts: Sequence[str], size: int) -> None:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        if size < LEAST:
            raise DataError(f"a vocabulary of {size} has no room for the {LEAST} bytes and marks; give a larger one")
        self._tokenizer: Tokenizer = Tokenizer(models.BPE())
        self._tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        self._tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=SPECIAL,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        self._tokenizer.train_from_iterator(texts, trainer)
        found = self._tokenizer.get_vocab_size()
        if found != size:
            raise DataError(
                f"a vocabulary of {size:,} is larger than the training texts allow, which have {found:,} subwords; "
                "lower it"
            )
        self.sha256 = hashlib.sha256(self._tokenizer.to_str().encode()).hexdigest()

    def encode(self, texts: Sequence[str]) -> list[Sequence[int]]:
        """Tokens of each text, int32."""
        return [numpy.array(each.ids, dtype=numpy.int32) for each in self._tokenizer.encode_batch(list(texts))]  # type: ignore[misc]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text; bytes that are none become a question mark in a diamond."""
        return self._tokenizer.decode([int(token) for token in tokens]).strip()
