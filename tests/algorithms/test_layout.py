"""The layout of tensors in one vector, and windows of it, against plain indexing."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from algorithms.core.layout import Indices, Layout, Window, Windows


@given(st.integers(0, 7), st.integers(1, 4), st.integers(1, 5), st.booleans(), st.integers(0, 5), st.booleans())
def test_supports_are_plain_indexing(
    offset: int, rows: int, columns: int, transposed: bool, padding: int, by_index: bool
) -> None:
    """A window of a matrix of five columns, or of its transpose, that begins somewhere in a vector."""
    strides = (1, 5) if transposed else (5, 1)
    places = torch.tensor([offset + i * strides[0] + j * strides[1] for i in range(rows) for j in range(columns)])
    padding = 0 if by_index else padding
    support = Indices(places) if by_index else Windows((Window(offset, (rows, columns), strides),), padding)
    flat = torch.arange(60, dtype=torch.float64) + 100
    assert support.payload_numel == len(places) + padding
    assert support.gather(flat).tolist() == [*flat[places].tolist(), *[0.0] * padding]
    values = torch.arange(1, len(places) + padding + 1, dtype=torch.float64)
    for alpha in (1.0, -0.5):
        added, copied = flat.clone(), flat.clone()
        support.add_(added, values, alpha=alpha)
        support.copy_(copied, values)
        sent = values[: len(places)]
        assert torch.equal(added, flat.index_add(0, places, sent, alpha=alpha))
        assert torch.equal(copied, flat.index_copy(0, places, sent))


@given(st.lists(st.lists(st.integers(1, 4), max_size=4), min_size=1, max_size=4), st.booleans())
def test_a_layout_gives_each_tensor_its_place(shapes: list[list[int]], channels_last: bool) -> None:
    tensors = [torch.randn(shape, generator=torch.Generator().manual_seed(1)) for shape in shapes]
    if channels_last:
        tensors = [t.to(memory_format=torch.channels_last) if t.dim() == 4 else t for t in tensors]
    layout = Layout.of(tensors)
    flat = torch.full((sum(math.prod(shape) for shape in shapes),), math.nan)
    for window, tensor in zip(layout.tensors, tensors, strict=True):
        view = window.view(flat)
        assert view.isnan().all(), "tensors do not overlap"
        assert view.stride() == tensor.stride()
        view.copy_(tensor)
    assert layout.numel == len(flat) and not flat.isnan().any(), "there are no gaps"


def test_a_tensor_with_gaps_is_made_dense() -> None:
    layout = Layout.of([torch.zeros(4, 6)[:, ::2], torch.zeros(3, 5).t()])
    assert layout == Layout((Window(0, (4, 3), (3, 1)), Window(12, (5, 3), (3, 1))))
