"""What methods rely on: boundaries are those of a stable sort, for every scope, rank and cut into pieces."""

from math import prod
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.workers.memory import MemorySource
from workers.statistics.magnitudes import Boundary, MagnitudeBoundaries

SHAPES: dict[str, tuple[int, ...]] = {"a": (3,), "b": (4, 5), "c": (), "d": (0, 2), "e": (2, 3, 2)}
Scope = Literal["global", "tensor"]


def _models(seed: int, n_models: int, *, has_ties: bool) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    models = []
    for _ in range(n_models):
        model = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
        models.append({name: tensor.round() if has_ties else tensor for name, tensor in model.items()})
    return models


def _lies_before(boundary: Boundary, vector: Tensor, *, start: int) -> Tensor:
    indices = torch.arange(start, start + vector.numel())
    magnitudes = vector.abs()
    return (magnitudes > boundary.magnitude) | ((magnitudes == boundary.magnitude) & (indices < boundary.index))


def _ranked(tensors: list[Tensor]) -> list[int]:
    vector = torch.cat([tensor.flatten() for tensor in tensors]).abs().tolist()
    return sorted(range(len(vector)), key=lambda index: (-vector[index], index))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    ranks=st.lists(st.integers(0, 40), min_size=1, max_size=3).map(tuple),
    scope=st.sampled_from(["global", "tensor"]),
    has_ties=st.booleans(),
    piece_elements=st.sampled_from([1, 3, 1 << 20]),
)
def test_exactly_the_first_entries_of_a_stable_sort_lie_before_a_boundary(
    *, seed: int, ranks: tuple[int, ...], scope: Scope, has_ties: bool, piece_elements: int
) -> None:
    models = _models(seed, 2, has_ties=has_ties)
    base = {name: torch.ones(shape) for name, shape in SHAPES.items()}
    shifted = [{name: base[name] + tensor for name, tensor in model.items()} for model in models]
    source = MemorySource(base, shifted, piece_elements=piece_elements)
    table = MagnitudeBoundaries("found", scope, lambda n: tuple(min(rank, n) for rank in ranks)).collect(source)
    for index, model in enumerate(shifted):
        deltas = [model[name] - base[name] for name in sorted(SHAPES)]
        for row, rank in enumerate(ranks):
            groups = [deltas] if scope == "global" else [[delta] for delta in deltas]
            wanted = [sorted(_ranked(group)[:rank]) for group in groups]
            kept: list[Tensor] = []
            for (name, _, position), delta in zip(source.tensors, deltas, strict=True):
                boundary = table.of(name)[index][row]
                start = position if scope == "global" else 0
                kept.append(_lies_before(boundary, delta.flatten(), start=start))
            found = [torch.cat(kept)] if scope == "global" else kept
            assert [mask.nonzero().flatten().tolist() for mask in found] == wanted


@pytest.mark.parametrize("scope", ["global", "tensor"])
def test_task_vectors_of_zero_have_their_ranks_from_the_front(scope: Scope) -> None:
    base = {name: torch.randn(shape, generator=torch.Generator().manual_seed(0)) for name, shape in SHAPES.items()}
    source = MemorySource(base, [base, base])
    table = MagnitudeBoundaries("found", scope, lambda n: (n // 2,)).collect(source)
    n_kept = 0
    for name, shape, position in source.tensors:
        start = position if scope == "global" else 0
        n_kept += int(_lies_before(table.of(name)[1][0], torch.zeros(prod(shape)), start=start).sum())
    assert n_kept == (36 // 2 if scope == "global" else 1 + 10 + 0 + 0 + 6)


def test_infinitely_small_magnitudes_are_told_apart() -> None:
    # subnormal float32 numbers, one bit apart
    base = {"w": torch.zeros(3)}
    model = {"w": torch.tensor([1e-45, 3e-45, -4e-45])}
    table = MagnitudeBoundaries("found", "global", lambda n: (2,)).collect(MemorySource(base, [model]))
    assert _lies_before(table.of("w")[0][0], model["w"], start=0).tolist() == [False, True, True]
