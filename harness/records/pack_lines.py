"""How the files of many runs become lines of text without repetition, and back to the same bytes."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

Files = dict[str, bytes]
"""The files of one run by name."""
Json = Any

SHARE_FROM = 20
"""Characters that a value must have for a reference to be worth its place."""


@dataclass
class Tables:
    """What lines refer to. In a line an object is [number of its keys, values...], a list is {"l": [items...]}, and
    {"s": n} stands for the n-th shared value; numbers, texts, true, false and null are themselves.
    """

    keys: list[list[str]] = field(default_factory=list)
    shared: list[Json] = field(default_factory=list)
    """Encoded like lines; each refers to earlier ones alone."""

    def values(self) -> list[Json]:
        """The shared values as they are."""
        values: list[Json] = []
        for each in self.shared:
            values.append(_decode(each, self.keys, values))
        return values


def encode(runs: Iterable[Files]) -> tuple[Tables, list[dict[str, Json]]]:
    """Tables, and the files of each run encoded by them; equal runs in equal order give equal tables."""
    trees = [{name: _tree(name, data) for name, data in sorted(files.items())} for files in runs]
    counts: Counter[bytes] = Counter()
    for tree in trees:
        for each in tree.values():
            _count(each, counts)
    encoder = _Encoder(frozenset(key for key, count in counts.items() if count > 1))
    lines = [{name: encoder.encode(each) for name, each in tree.items()} for tree in trees]
    return encoder.tables, lines


def decode(name: str, encoded: Json, keys: list[list[str]], shared: list[Json]) -> bytes:
    """The contents of the file of that name; `shared` holds `Tables.values`.

    Raises:
        LookupError, TypeError, ValueError: what is encoded does not fit the tables.
    """
    return _bytes(name, _decode(encoded, keys, shared))


class _Encoder:
    def __init__(self, repeated: frozenset[bytes]) -> None:
        self.tables = Tables()
        self._repeated = repeated
        self._keys: dict[tuple[str, ...], int] = {}
        self._shared: dict[bytes, int] = {}

    def encode(self, tree: Json) -> Json:
        key = _key(tree)
        if key is None or key not in self._repeated:
            return self._parts(tree)
        if key not in self._shared:
            encoded = self._parts(tree)
            self._shared[key] = len(self.tables.shared)
            self.tables.shared.append(encoded)
        return {"s": self._shared[key]}

    def _parts(self, tree: Json) -> Json:
        if isinstance(tree, list):
            return {"l": [self.encode(each) for each in tree]}
        if isinstance(tree, dict):
            names = tuple(tree)
            if names not in self._keys:
                self._keys[names] = len(self.tables.keys)
                self.tables.keys.append(list(names))
            return [self._keys[names], *map(self.encode, tree.values())]
        return tree


def _decode(value: Json, keys: list[list[str]], shared: list[Json]) -> Json:
    if isinstance(value, list):
        return dict(zip(keys[value[0]], [_decode(each, keys, shared) for each in value[1:]], strict=True))
    if isinstance(value, dict):
        if "s" in value:
            return shared[value["s"]]
        return [_decode(each, keys, shared) for each in value["l"]]
    return value


def _count(tree: Json, counts: Counter[bytes]) -> None:
    """Count what may be shared; what is in a value that was seen before will be covered by the reference to that."""
    key = _key(tree)
    if key is not None:
        counts[key] += 1
        if counts[key] > 1:
            return
    if isinstance(tree, list | dict):
        for each in tree.values() if isinstance(tree, dict) else tree:
            _count(each, counts)


def _key(tree: Json) -> bytes | None:
    """By which equal values are known, 1 and 1.0 and true apart; None for what is too short to share."""
    if not isinstance(tree, list | dict | str):
        return None
    text = json.dumps(tree)
    return hashlib.sha256(text.encode()).digest() if len(text) >= SHARE_FROM else None


def _tree(name: str, data: bytes) -> Json:
    """A file's contents as JSON, events as a column for each key; as a text where that would give other bytes."""
    text = data.decode("utf-8", "surrogateescape")
    try:
        tree = _columns(text) if name.endswith(".jsonl") else json.loads(text)
        if isinstance(tree, dict) and _bytes(name, tree) == data:
            return tree
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError):
        pass
    return text


def _columns(text: str) -> dict[str, list[Json]]:
    events = [json.loads(line) for line in text.splitlines()]
    return {key: [event[key] for event in events] for key in events[0]}


def _bytes(name: str, tree: Json) -> bytes:
    """A file's contents in the form that the store writes them in."""
    if isinstance(tree, str):
        return tree.encode("utf-8", "surrogateescape")
    if name.endswith(".jsonl"):
        rows = zip(*tree.values(), strict=True)
        return "".join(json.dumps(dict(zip(tree, row, strict=True))) + "\n" for row in rows).encode()
    return (json.dumps(tree, indent=1) + "\n").encode()
