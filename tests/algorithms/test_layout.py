"""Layouts, windows and index sets against plain indexing, and the flat buffers."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from algorithms.core.flat import FlatBuffers
from algorithms.core.layout import Indices, Layout, Window, Windows, whole

DEFAULT_ALPHA, OTHER_ALPHA = 1.0, -0.5


def assert_support_is(support: Windows | Indices, numel: int, coordinates: list[int], padding: int = 0) -> None:
    """`support` is these coordinates, in this order, with that many zeros after them."""
    flat = torch.arange(numel, dtype=torch.float64) + 100
    assert support.payload_numel == len(coordinates) + padding
    sent = support.gather(flat)
    assert sent.tolist() == [100.0 + coordinate for coordinate in coordinates] + [0.0] * padding
    values = torch.arange(1, len(coordinates) + padding + 1, dtype=torch.float64)
    for alpha in (DEFAULT_ALPHA, OTHER_ALPHA):
        expected, actual = flat.clone(), flat.clone()
        for place, coordinate in enumerate(coordinates):
            expected[coordinate] += alpha * (place + 1)
        support.add_(actual, values, alpha=alpha)
        assert torch.equal(actual, expected)
    copied = flat.clone()
    support.copy_(copied, values)
    expected = flat.clone()
    for place, coordinate in enumerate(coordinates):
        expected[coordinate] = place + 1
    assert torch.equal(copied, expected)
    assert torch.equal(flat, torch.arange(numel, dtype=torch.float64) + 100), "gather leaves the vector as it is"


@st.composite
def disjoint_slices(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]]]:
    """d, and some disjoint slices of range(d) in any order."""
    cuts = sorted(draw(st.sets(st.integers(0, 40), min_size=2, max_size=9)))
    slices = [pair for pair in pairwise(cuts) if draw(st.booleans())]
    return 41, draw(st.permutations(slices))


@given(disjoint_slices(), st.integers(0, 5))
def test_slices_are_plain_indexing(case: tuple[int, list[tuple[int, int]]], padding: int) -> None:
    numel, slices = case
    windows = Windows(tuple(Window(start, (stop - start,), (1,)) for start, stop in slices), padding)
    assert_support_is(windows, numel, [i for start, stop in slices for i in range(start, stop)], padding)


@given(st.integers(0, 7), st.integers(1, 4), st.integers(1, 5), st.booleans())
def test_strided_windows_are_plain_indexing(offset: int, rows: int, columns: int, transposed: bool) -> None:
    # A window of a matrix of 5 columns, or of its transpose, that begins somewhere in a vector.
    strides = (1, 5) if transposed else (5, 1)
    window = Window(offset, (rows, columns), strides)
    coordinates = [offset + i * strides[0] + j * strides[1] for i in range(rows) for j in range(columns)]
    if len(set(coordinates)) == len(coordinates):
        assert_support_is(Windows((window,)), 60, coordinates)


@given(st.lists(st.integers(0, 30), unique=True, min_size=1))
def test_index_sets_are_plain_indexing(coordinates: list[int]) -> None:
    assert_support_is(Indices(torch.tensor(coordinates)), 31, coordinates)


def test_the_empty_and_the_whole_support() -> None:
    assert_support_is(Windows(()), 5, [])
    assert_support_is(whole(5), 5, list(range(5)))


@given(st.lists(st.lists(st.integers(1, 4), max_size=4), min_size=1, max_size=4), st.booleans())
def test_a_layout_gives_each_tensor_its_place(shapes: list[list[int]], channels_last: bool) -> None:
    tensors = [torch.randn(shape, generator=torch.Generator().manual_seed(1)) for shape in shapes]
    if channels_last:
        tensors = [t.to(memory_format=torch.channels_last) if t.dim() == 4 else t for t in tensors]
    layout = Layout.of(tensors)
    assert layout.numel == sum(math.prod(shape) for shape in shapes)
    flat = torch.full((layout.numel,), math.nan)
    for window, tensor in zip(layout.tensors, tensors, strict=True):
        view = window.view(flat)
        assert view.isnan().all(), "tensors do not overlap"
        assert view.stride() == tensor.stride()
        view.copy_(tensor)
    assert not flat.isnan().any(), "there are no gaps"
    for window, tensor in zip(layout.tensors, tensors, strict=True):
        assert torch.equal(window.view(flat), tensor)


def test_a_tensor_with_gaps_is_made_dense() -> None:
    layout = Layout.of([torch.zeros(4, 6)[:, ::2], torch.zeros(3, 5).t()])
    assert layout == Layout((Window(0, (4, 3), (3, 1)), Window(12, (5, 3), (3, 1))))


def test_parameters_keep_their_values_and_become_views() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)).double()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    flat = FlatBuffers([list(model.parameters())])
    expected = torch.cat([parameter.reshape(-1) for parameter in before])
    assert torch.equal(flat.parameters, expected.unsqueeze(0))
    flat.parameters.mul_(2)
    for parameter, value in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter.detach(), 2 * value)
    flat.gradients.copy_(torch.arange(14.0))
    gradients: list[Tensor] = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert np.array_equal(torch.cat([gradient.reshape(-1) for gradient in gradients]), np.arange(14.0))
    assert [(part.start, part.stop) for part in flat.parts] == [(0, 14)]
