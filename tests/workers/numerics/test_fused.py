"""The fused kernels give, to the last bit, what the methods' torch functions give."""

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from math import prod
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from app.domain.errors import JobInternal
from tests.workers.memory import MemoryMerge
from workers import fusion, patches
from workers.catalog import load_method
from workers.contract import Piece
from workers.fusion import Band, Draw, Election, FusedMasks, FusedMerge, Importance, Rows
from workers.granularity import run_around
from workers.numerics import (
    competition,
    exact_sums,
    fused,
    importance,
    precision,
    randomness,
    residuals,
    signs,
    spans,
    sparsify,
    task_vectors,
)
from workers.numerics.programs import Windows
from workers.numerics.random_masks import RankedMask, UniformMask
from workers.numerics.sparsify import EVERYTHING, NOTHING, Boundary
from workers.patches import Masked
from workers.pipelines.program import MergeProgram
from workers.statistics import gram
from workers.statistics.overlaps import Overlaps
from workers.statistics.views import TensorSource

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("average", {}),
    ("average", {"normalize": False}),
    ("task_arithmetic", {"scaling_coefficient": -1.3}),
    ("ties", {}),
    ("ties", {"density": 0.7, "trim_scope": "tensor", "reduce": "sum", "vote": "weighted"}),
    ("ties", {"density": 1.0, "reduce": "max", "zero_vote": "positive", "scaling_coefficient": 0.3}),
    ("ties", {"density": 0.5, "reduce": "mean", "vote": "weighted"}),
    ("breadcrumbs", {}),
    ("breadcrumbs", {"scope": "global", "density": 0.4, "outlier_fraction": 0.2, "elect_signs": True}),
    ("breadcrumbs", {"mask_mode": "random", "density": 0.5}),
    ("breadcrumbs", {"mask_mode": "drop_outliers", "outlier_fraction": 0.3}),
    ("dare_linear", {"density": 0.3}),
    ("dare_linear", {"density": 1.0}),
    ("dare_linear", {"rescale": "none", "scaling_coefficient": 0.7}),
    ("dare_linear", {"rescale": "l1", "density": 0.6}),
    ("dare_ties", {"density": 0.4}),
    ("dare_ties", {"vote": "weighted", "reduce": "sum"}),
    ("dare_ties", {"rescale": "l1", "density": 0.6}),
    ("dare_ties", {"density": 0.8, "trim_density": 0.4}),
    ("dare_ties", {"rescale": "l1", "trim_density": 0.5, "trim_scope": "tensor", "zero_vote": "majority"}),
    ("consensus_ta", {"scaling_coefficient": 0.6}),
    ("consensus_ta", {"mask_threshold": 0.0, "min_tasks": 1}),
    ("consensus_ties", {"density": 0.6}),
    ("consensus_ties", {"density": 0.5, "reduce": "mean", "vote": "weighted", "min_tasks": 1, "trim_scope": "tensor"}),
    ("magmax", {}),
    ("ram", {"change_threshold": 0.25}),
    ("ram", {"change_threshold": 0.0}),
    ("ram", {"change_threshold": 0.25, "unique_boost": 0.3}),
    ("arcee_fusion", {}),
    ("arcee_fusion", {"interquartile_ranges": 0.1}),
    ("nearswap", {"max_change": 0.2}),
    ("nearswap", {"max_change": 0.25}),
    ("multislerp", {"normalize": False}),
    ("karcher", {}),
    ("expo", {}),
    ("model_stock", {}),
    ("model_stock", {"scope": "row"}),
    ("model_stock", {"scope": "row", "mean": "cosine", "clamp": False}),
    ("della", {}),
    ("della", {"density_spread": 0.0}),
    ("della", {"rescale": "l1", "vote": "weighted", "reduce": "sum"}),
    ("della", {"rescale": "none", "density_spread": 0.3, "reduce": "max"}),
    ("della_linear", {"scaling_coefficient": -0.7}),
    ("della_linear", {"rescale": "l1", "density": 0.9, "density_spread": 0.4}),
    ("nuslerp", {}),
    ("slerp", {"t": 0.3}),
]
WEIGHTS = [(1.0, 1.0, 1.0), (0.5, -1.25, 2.0), (0.1, 0.0, 0.7), (0.3, 0.3, -0.3)]


@pytest.fixture(scope="module", autouse=True)
def _kernels() -> None:
    assert fused.load()


def draw_models(seed: int, n: int = 3) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """Return a base and models on a coarse grid: many ties, balanced votes, zeros of both signs."""
    generator = torch.Generator().manual_seed(seed)

    def grid(*shape: int, steps: int) -> Tensor:
        return torch.randint(-steps, steps + 1, shape, generator=generator) / 8

    shapes = {"a": (37, 61), "b": (1,), "c": (5, 7, 3), "empty": (0,)}
    base = {name: grid(*shape, steps=40) for name, shape in shapes.items()}
    base["a"].view(-1)[::7] *= -0.0
    models = [{name: tensor + grid(*tensor.shape, steps=3) for name, tensor in base.items()} for _ in range(n)]
    return base, models


def rows_as(piece: Piece, dtype: torch.dtype) -> Rows:
    """Return the piece's rows as a file of that dtype would hold them."""
    base = () if piece.base is None else (piece.base.unsqueeze(0),)
    content = torch.cat((*base, piece.finetuned)).to(dtype)
    kind = {torch.bfloat16: fusion.BFLOAT16, torch.float16: fusion.FLOAT16, torch.float32: fusion.FLOAT32}[dtype]
    return replace(
        piece.rows,
        content=content.view(torch.uint8).numpy().reshape(-1),
        at=np.arange(len(content), dtype=np.int64) * content.shape[1] * dtype.itemsize,
        kinds=np.full(len(content), kind, dtype=np.int64),
    )


def keep_negative_zeros(result: Tensor, base: Tensor) -> Tensor:
    return torch.where((result == 0) & (base == 0) & base.signbit(), base, result)


def same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def draw_merge(
    method: str, parameters: dict[str, Any], weights: tuple[float, ...]
) -> tuple[TensorSource, MergeProgram]:
    """Return models as the method takes them, and the program that merges them."""
    card = load_method(method).card
    base, models = draw_models(len(weights))
    weights = weights[: card.max_models]
    if card.weights == "non_negative":
        weights = tuple(map(abs, weights))
    merge = MemoryMerge(load_method(method), parameters, weights=() if card.weights == "unused" else weights, seed=3)
    return merge.prepare(None if card.base_model == "unused" else base, models[: card.max_models])


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(("method", "parameters"), VARIANTS)
def test_a_fused_method_gives_the_bits_of_its_torch_function(
    method: str, parameters: dict[str, Any], weights: tuple[float, ...]
) -> None:
    source, program = draw_merge(method, parameters, weights)
    for name, shape, _ in source.tensors:
        n = prod(shape)
        if not n:
            continue
        found = program.fuse(name, shape)
        assert isinstance(found, FusedMerge)
        start, _ = run_around(found.granularity, shape, n // 3, n)
        for offset, size in ((0, n), (start, n - start)):
            piece = source.read(name, offset, size)
            # rows and tensors are what these methods are shown, but few of them look beyond an element
            expected = program.merge(source.read(name, 0, n))[offset : offset + size]
            if piece.base is not None:
                expected = keep_negative_zeros(expected, piece.base)
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                for out_dtype in (torch.float32, torch.bfloat16):
                    out = torch.empty(size, dtype=out_dtype)
                    assert fused.merge(rows_as(piece, dtype), found, out)
                    assert same_bits(out, expected.to(out_dtype)), (name, dtype, out_dtype)


@given(
    seed=st.integers(0, 1 << 20),
    n=st.integers(1, 5),
    m=st.integers(1, 3000),
    scaling=st.floats(-2, 2, width=32),
    reduction=st.sampled_from(["mean", "sum", "max"]),
    balanced_sign=st.sampled_from([-1, 1]),
)
@settings(max_examples=60, deadline=None)
def test_masks_elections_and_sums_are_those_of_numerics(  # noqa: PLR0913
    seed: int, n: int, m: int, scaling: float, reduction: Any, balanced_sign: int
) -> None:
    random = np.random.default_rng(seed)
    base = torch.from_numpy(random.normal(size=m).astype(np.float32))
    finetuned = base + torch.from_numpy(random.integers(-3, 4, (n, m)).astype(np.float32) / 4)
    weights = [float(weight) for weight in random.choice([1.0, -0.7, 0.3, 0.0], n)]
    choices = [NOTHING, EVERYTHING, Boundary(0.5, int(random.integers(m + 90)))]
    bounds = [choices[index] for index in random.integers(3, size=n)]
    piece = Piece("w", (m,), 0, 90, base, finetuned)

    trimmed = sparsify.trim(signs.orient(task_vectors.subtract(finetuned, base), weights), bounds, start=90)
    merged = signs.merge_disjointly(trimmed, weights, vote="weighted", reduction=reduction, balanced_sign=balanced_sign)
    expected = keep_negative_zeros(task_vectors.add(base, merged, scaling_coefficient=scaling), base)

    votes = tuple(abs(weight) for weight in weights)
    program = FusedMerge(
        tuple(weights), of_deltas=True, masks=sparsify.fuse_trim(bounds, origin=90),
        election=Election(votes, balanced_sign, reduction), scaling=scaling, base_share=1.0,
    )  # fmt: skip
    out = torch.empty(m)
    assert fused.merge(piece.rows, program, out)
    assert same_bits(out, expected)
    elected = signs.elect(trimmed, votes)
    assert fused.count_signs(piece.rows, program) == int(elected.sum(dtype=torch.float64))


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("della", {}),
        ("della", {"rescale": "l1", "vote": "weighted", "reduce": "sum"}),
        ("della", {"rescale": "none", "density_spread": 0.3, "reduce": "max"}),
        ("della_linear", {"scaling_coefficient": -0.7}),
        ("della_linear", {"rescale": "l1", "density_spread": 0.0}),
        ("model_stock", {"scope": "row"}),
        ("model_stock", {"scope": "row", "mean": "cosine", "clamp": False}),
        ("nuslerp", {"scope": "row"}),
        ("pcb", {"density": 0.4}),
        ("pcb", {"density": 0.4, "variant": "script"}),
    ],
)
def test_a_method_with_kernels_within_gives_the_bits_that_it_gives_without(
    method: str, parameters: dict[str, Any], weights: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def merge() -> list[Tensor]:
        source, program = draw_merge(method, parameters, weights)
        pieces = [source.read(name, 0, prod(shape)) for name, shape, _ in source.tensors if prod(shape)]
        merged = [(program.merge(piece), piece.base) for piece in pieces]
        return [one if base is None else keep_negative_zeros(one, base) for one, base in merged]

    found = merge()
    monkeypatch.setattr(fused, "_loaded", [])
    assert all(same_bits(one, other) for one, other in zip(found, merge(), strict=True))


def test_draws_are_those_of_randomness() -> None:
    base, finetuned = torch.zeros(5000), torch.ones(1, 5000)
    piece = Piece("w", (9000,), 1234, 0, base, finetuned)
    out = torch.empty(5000)
    program = FusedMerge((1.0,), of_deltas=True, draws=(Draw((1 << 64) - 5, 0.3),), base_share=1.0)
    assert fused.merge(piece.rows, program, out)
    draws = randomness.draw_uniform((1 << 64) - 5, start=1234, n=5000)
    assert torch.equal(out, (draws < 0.3).float())


def draw_rows(width: int) -> Tensor:
    """Return rows that are hard to rank: ties, equal entries, zeros of both signs, any magnitude, a few that differ."""
    generator = torch.Generator().manual_seed(width)
    rows = torch.randn(9, width, generator=generator)
    rows[:3] = torch.randint(-40, 41, (3, width), generator=generator) / 8
    rows[0] *= 1e-40
    rows[3] = 0.25
    rows[4] *= 0.0
    rows[5] = 10.0 ** (rows[5] * 12)
    rows[6] = rows[6] * 1e-7 + 1.0
    rows[7, width // 2] = 3e38
    return rows


@pytest.mark.parametrize("width", [1, 2, 5, 48, 49, 700, 5000])
@pytest.mark.parametrize("rescale", ["inverse_probability", "none"])
@pytest.mark.parametrize("spread", [0.0, 0.07, 0.4, 0.9])
def test_masks_by_rank_are_those_of_torch(
    width: int, rescale: Any, spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, found, expected = draw_rows(width), torch.empty(9, width), torch.empty(9, width)
    mask = RankedMask(0.4, spread, rescale)
    mask.draw(rows, -3, start=11 * width, factor=0.7, out=found)
    monkeypatch.setattr(fused, "_loaded", [])
    mask.draw(rows, -3, start=11 * width, factor=0.7, out=expected)
    assert same_bits(found, expected)


def test_uniform_masks_are_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    vector, mask = torch.linspace(-1, 1, 999).view(3, 333), UniformMask(0.3, "inverse_density")
    found, expected = torch.empty(3, 333), torch.empty(3, 333)
    mask.draw(vector, 7, start=5, factor=0.7, out=found)
    monkeypatch.setattr(fused, "_loaded", [])
    mask.draw(vector, 7, start=5, factor=0.7, out=expected)
    assert same_bits(found, expected)


def test_sums_of_magnitudes_are_exact_and_those_of_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = torch.tensor([0.0, -0.0, 1e-45, -3e38, 0.1, 0.1, -7.25, 1e-39])
    found = exact_sums.sum_magnitudes(numbers)
    assert float(exact_sums.to_fraction(found)) == pytest.approx(3e38)
    monkeypatch.setattr(fused, "_loaded", [])
    assert exact_sums.to_fraction(found) == exact_sums.to_fraction(exact_sums.sum_magnitudes(numbers))


def test_norms_before_and_after_masks() -> None:
    base, finetuned = torch.full((5000,), 0.25), torch.randn(2, 5000, generator=torch.Generator().manual_seed(1))
    masks = (Draw(5, 0.5), Draw(6, 0.9))
    sums = fused.sum_norms(replace(Piece("w", (9000,), 99, 0, base, finetuned).rows, draws=masks))
    deltas = task_vectors.subtract(finetuned, base)
    for model, (delta, mask) in enumerate(zip(deltas, masks, strict=True)):
        left = torch.empty_like(delta)
        UniformMask(mask.probability, "none").draw(delta, mask.key, start=99, factor=1.0, out=left)
        for found, vector in zip(sums[:, model], (delta, left), strict=True):
            assert exact_sums.to_fraction(found) == exact_sums.to_fraction(exact_sums.sum_magnitudes(vector))


def test_norms_before_and_after_masks_by_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    base, finetuned = draw_rows(700), torch.stack([draw_rows(700) / 2, draw_rows(700) - 0.25]).view(2, -1)
    rows = Piece("w", (9, 700), 0, 0, base.view(-1), finetuned).rows
    masks = (Draw(5, 0.5, spread=0.2), Draw(6, 0.9))
    sums = fused.sum_norms(replace(rows, draws=masks))
    deltas = task_vectors.subtract(finetuned, base.view(-1)).view(2, 9, 700)
    monkeypatch.setattr(fused, "_loaded", [])
    for model, (delta, mask) in enumerate(zip(deltas, masks, strict=True)):
        left = torch.empty_like(delta)
        RankedMask(mask.probability, mask.spread, "none").draw(delta, mask.key, start=0, factor=1.0, out=left)
        for found, vector in zip(sums[:, model], (delta, left), strict=True):
            assert exact_sums.to_fraction(found) == exact_sums.to_fraction(exact_sums.sum_magnitudes(vector))


@pytest.mark.parametrize(
    "statistic", [fused.spread, fused.multiply_blocks, lambda rows: fused.count_overlaps(rows, 0.5)]
)
def test_what_knows_no_draws_is_given_none(statistic: Callable[[Rows], object]) -> None:
    rows = Piece("w", (3,), 0, 0, torch.zeros(3), torch.ones(2, 3)).rows
    with pytest.raises(JobInternal, match="draws of tensor 'w' reached a kernel that knows none"):
        statistic(replace(rows, draws=(Draw(5, 0.5), Draw(6, 0.5))))


@pytest.mark.parametrize("width", [1, 3, 768, 3000, 40_000])
def test_keys_of_importance_are_those_of_weighed_changes(width: int) -> None:
    generator = torch.Generator().manual_seed(width)
    theirs, base = torch.randn(2, 50_000 // width, width, generator=generator)
    rows = Piece("w", tuple(base.shape), 0, 0, base.view(-1), theirs.reshape(1, -1)).rows
    divergences = fused.diverge_rows(rows)
    assert torch.equal(divergences, importance._diverge(theirs, base))
    of_rows = Importance(0.0, divergences.numpy(), width)
    expected = importance.weigh_changes(theirs, base).view(-1).numpy().view(np.int32)
    for start in (0, 7):
        run = replace(rows, offset=start, at=rows.at + 4 * start, n_elements=rows.n_elements - start)
        [(_, found)] = fused.count_keys(replace(run, importance=of_rows), windows_of(0, 1))
        assert found.tolist() == expected[start:].tolist()


@pytest.mark.parametrize("row", [0, 1])
def test_what_is_no_number_has_no_importance(row: int) -> None:
    numbers = torch.ones(2, 12)
    numbers[row, 7] = torch.nan
    rows = Piece("w", (3, 4), 0, 0, numbers[0], numbers[1:]).rows
    with pytest.raises(fusion.NotClean):
        fused.diverge_rows(rows)
    with pytest.raises(fusion.NotClean):
        fused.count_keys(replace(rows, importance=Importance(0.0, np.ones(3), 4)), windows_of(0, 1))


@pytest.mark.parametrize("m", [1, 2, 3, 6, 8, 12, 768, 1000, 4096])
def test_inner_products_are_those_of_torch(m: int, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = torch.randn(3, 2, m, generator=torch.Generator().manual_seed(m))
    found = precision.inner_products(vectors)
    expected = torch.einsum("ibm,jbm->bij", vectors.double(), vectors.double())
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    monkeypatch.setattr(fused, "_loaded", [])
    assert same_bits(found, precision.inner_products(vectors))


@pytest.mark.parametrize("width", [1, 3, 32, 768, 1000])
def test_products_and_sums_of_rows_are_those_of_torch(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    base, *models = torch.randn(4, 5, width, generator=torch.Generator().manual_seed(width))
    base[0], finetuned = -0.0, torch.stack(models)
    finetuned[0, 1] = base[1]
    shares = torch.randn(3, 5, 1, generator=torch.Generator().manual_seed(width), dtype=torch.float64)

    def work() -> list[Tensor]:
        products = [spans.row_products(finetuned, one) for one in (base, None)]
        return products + [spans.combine_rows(one, finetuned, shares) for one in (base, None)]

    found = work()
    monkeypatch.setattr(fused, "_loaded", [])
    assert all(same_bits(one, other) for one, other in zip(found, work(), strict=True))


@pytest.mark.parametrize("variant", ["vision", "script"])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (2, 255), (3, 256), (8, 1000)])
def test_scores_are_those_of_torch(n: int, m: int, variant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    deltas = torch.randn(n, m, generator=torch.Generator().manual_seed(m)) * 3
    deltas[0, ::5] *= -0.0
    clips = [competition.Bounds(0.0, 2.0), competition.Bounds(0.5, 0.5), *[competition.Bounds(0.25, 4.0)] * 6][:n]
    found = competition.score(deltas, clips, variant)
    monkeypatch.setattr(fused, "_loaded", [])
    assert torch.equal(found, competition.score(deltas, clips, variant))


def test_what_is_not_finite_is_left_to_torch() -> None:
    base, vectors = torch.zeros(2), torch.tensor([[3.0e38, 1.0], [3.0e38, 1.0]])
    assert fused.join(base, vectors, FusedMerge((1.0, 1.0), base_share=1.0)) is None
    assert task_vectors.add_weighted(base, vectors, (1.0, 1.0), scaling_coefficient=1.0).tolist() == [math.inf, 2.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("offset", "m"), [(0, 4096), (0, 3), (5, 4000), (4095, 4098), (4096, 12_288), (7, 40_000)])
def test_products_of_rows_are_those_of_pieces(offset: int, m: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(m)
    base, *models = torch.randn(4, offset + m, generator=generator).to(dtype).float()
    piece = Piece("w", (offset + m,), offset, offset, base[offset:], torch.stack(models)[:, offset:])
    head, products, tail = fused.multiply_blocks(rows_as(piece, dtype))
    expected = gram.multiply("w", offset, torch.stack(models)[:, offset:] - base[offset:])
    assert torch.equal(head, expected.head)
    assert torch.equal(products, expected.blocks)
    assert torch.equal(tail, expected.tail)


@pytest.mark.parametrize("boundary", [NOTHING, EVERYTHING, Boundary(0.5, 0), Boundary(0.5, 47), Boundary(0.5, 999)])
def test_what_differs_most_is_picked_as_torch_picks_it(boundary: Boundary, monkeypatch: pytest.MonkeyPatch) -> None:
    shared, model = torch.randint(-4, 5, (2, 100), generator=torch.Generator().manual_seed(1)) / 4
    found = residuals._replace_first(model, shared, boundary, start=7)
    monkeypatch.setattr(fused, "_loaded", [])
    expected = residuals._replace_first(model, shared, boundary, start=7)
    assert isinstance(found, patches.Replacement)
    assert isinstance(expected, patches.Replacement)
    assert torch.equal(found.indices, expected.indices)
    assert torch.equal(found.values, expected.values)


@pytest.mark.parametrize("low", [0, 1, 1056964608, 2139095041])
def test_keys_are_counted_as_integers(low: int) -> None:
    numbers = torch.tensor([0.0, -0.0, 0.25, -0.5, 0.5, 1.0, 3.0e38, -1e-45] * 300)
    piece = Piece("w", (2400,), 0, 0, None, numbers.unsqueeze(0))
    keys = numbers.abs().numpy().view(np.int32)
    high = min(low + (1 << 23), (1 << 31) - 1)
    windows = Windows(np.array([0, 1]), np.array([low], dtype=np.int32), np.array([high], dtype=np.int32))
    [(n_above, found)] = fused.count_keys(piece.rows, windows)
    assert n_above == int((keys > high).sum())
    assert found.tolist() == keys[(keys >= low) & (keys <= high)].tolist()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.02, 1.0])
def test_keys_within_a_window_are_found_wherever_they_lie(share: float) -> None:
    keys = np.random.default_rng(0).integers(0, 1 << 23, 5000, dtype=np.int32) + 1056964608
    inside = np.random.default_rng(1).random(5000) < share
    keys[inside] = 1 << 30
    keys[[0, 63, 64, 4991, 4992, 4999]] = [1 << 30, (1 << 30) - 1, (1 << 30) + 1, 1 << 30, 0, 1 << 30]  # at the ends
    rows = Piece("w", (5000,), 0, 0, None, torch.from_numpy(keys.view(np.float32)).unsqueeze(0)).rows
    [(n_above, found)] = fused.count_keys(rows, windows_of(0, 1, 1 << 30, 1 << 30))
    assert (n_above, len(found)) == (1, int(np.count_nonzero(keys == 1 << 30)))
    [(n_above, found)] = fused.count_keys(rows, windows_of(0, 1, (1 << 30) - 1, (1 << 30) + 1))
    assert found.tolist() == keys[np.abs(keys - (1 << 30)) <= 1].tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("has_base", [True, False])
def test_keys_are_the_bits_of_magnitudes(dtype: torch.dtype, *, has_base: bool) -> None:
    numbers = torch.randn(3, 5000, generator=torch.Generator().manual_seed(0)).to(dtype).float()
    rows = rows_as(Piece("w", (5000,), 0, 0, numbers[0], numbers[1:]), dtype)
    vectors = numbers[1:] - numbers[0] if has_base else numbers[1:]
    found = fused.read_keys(rows if has_base else rows.without_base())
    assert np.array_equal(found, vectors.abs().numpy().view(np.int32))
    with pytest.raises(fusion.NotClean):
        fused.read_keys(one(torch.inf))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_keys_of_runs_anywhere_in_a_tensor_are_read_in_one_go(dtype: torch.dtype, tmp_path: Path) -> None:
    numbers = torch.randn(3, 50_000, generator=torch.Generator().manual_seed(0)).to(dtype)
    (tmp_path / "rows").write_bytes(numbers.view(torch.uint8).numpy().tobytes())
    keys = (numbers[1:].float() - numbers[0].float()).abs().numpy().view(np.int32)
    n, first = 20_000, 1_000  # longer than a part
    with (tmp_path / "rows").open("rb") as file:
        rows = rows_in(file.fileno(), numbers, first, n)
        assert rows.are_stored
        found = fused.read_keys(rows, [0, 29_000, 7])
        assert np.array_equal(found, np.concatenate([keys[:, at : at + n] for at in (1_000, 30_000, 1_007)], axis=1))
        with pytest.raises(fusion.NotClean):
            fused.read_keys(rows, [110_000])  # behind the file's end
    assert not rows_as(Piece("w", (50_000,), 0, 0, None, numbers.float()), dtype).are_stored


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_byte_depends_on_how_much_is_read_at_a_time(dtype: torch.dtype, tmp_path: Path) -> None:
    numbers = torch.randn(4, 700 * 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    (tmp_path / "rows").write_bytes(numbers.view(torch.uint8).numpy().tobytes())
    masks, election = tuple(Band((0.3, 90), (2.0, 70), 0) for _ in range(3)), Election((1.0,) * 3, 1, "mean")
    programs = (
        FusedMerge((1.0, 2.0, 0.5), divisor=3.5),
        FusedMerge((1.0,) * 3, of_deltas=True, masks=masks, election=election, base_share=1.0),
        FusedMerge((1.0,) * 3, of_deltas=True, draws=tuple(Draw(key, 0.5, 0.2) for key in range(3)), base_share=1.0),
    )
    found: list[list[bytes]] = []
    with (tmp_path / "rows").open("rb") as file:
        rows = replace(rows_in(file.fileno(), numbers, 0, 700 * 64), shape=(700, 64))
        for part in (fusion.LEAST_PART, fusion.PART, fusion.LARGEST_PART):
            of_part = replace(rows, part=part)
            outs = [torch.empty(700 * 64, dtype=dtype) for _ in range(4)]
            assert all(fused.merge(of_part, program, out) for program, out in zip(programs, outs, strict=False))
            masked = fused.mask(of_part, FusedMasks(is_measured=True), outs[3])
            assert masked is not None
            assert masked.sums is not None
            products = fused.multiply_blocks(of_part)[1].numpy()
            statistics: list[NDArray[Any]] = [fused.read_keys(of_part), masked.bits, masked.sums, products]
            found.append([out.view(torch.uint8).numpy().tobytes() for out in outs] + [x.tobytes() for x in statistics])
    assert found[0] == found[1] == found[2]
    assert len(set(found[0])) == len(found[0])


def rows_in(file: int, numbers: Tensor, offset: int, n: int) -> Rows:
    """Return a run of rows that a file holds one after the other. numbers: [rows, m]."""
    item, rows = numbers.element_size(), rows_as(Piece("w", (n,), 0, 0, numbers[0], numbers[1:]), numbers.dtype)
    places = (np.arange(len(numbers)) * numbers.shape[1] + offset) * item
    return replace(
        rows,
        shape=(numbers.shape[1],),
        offset=offset,
        n_elements=n,
        content=np.empty(len(numbers) * n * item, dtype=np.uint8),
        at=np.arange(len(numbers)) * n * item,
        files=np.full(len(numbers), file),
        places=places,
    )


@given(st.integers(1, 9000), st.integers(1, 9000), st.integers(1, 40), st.integers(0, 2**32))
@settings(deadline=None)
def test_the_first_entries_with_a_key_are_found(m: int, limit: int, n_values: int, seed: int) -> None:
    numbers = np.random.default_rng(seed).integers(-n_values, n_values, m, endpoint=True).astype(np.float32)
    rows = Piece("w", (m,), 0, 0, torch.ones(m), torch.from_numpy(numbers + 1).unsqueeze(0)).rows
    expected = np.flatnonzero(np.abs(numbers) == 1.0)[:limit]
    assert fused.find_keys(rows, int(np.float32(1.0).view(np.int32)), limit).tolist() == expected.tolist()


def test_keys_are_not_looked_for_behind_the_last_that_is_wanted() -> None:
    numbers = torch.ones(1, 40_000)
    numbers[0, 39_000] = torch.inf
    rows = Piece("w", (40_000,), 0, 0, None, numbers).rows
    key = int(np.float32(1.0).view(np.int32))
    assert fused.find_keys(rows, key, 20_000).tolist() == list(range(20_000))
    with pytest.raises(fusion.NotClean):
        fused.find_keys(rows, key, 35_000)


def one(value: float, base: float = 0.0) -> Rows:
    return Piece("w", (1,), 0, 0, torch.tensor([base]), torch.tensor([[value]])).rows


@pytest.mark.parametrize(
    ("value", "dtype", "is_finite"),
    [
        (3.3895313892515355e38, torch.bfloat16, True),  # the largest bfloat16
        (3.3961775292304e38, torch.bfloat16, False),  # half way to the next, which would be infinite
        (3.3961775292304e38, torch.float32, True),
        (3.4028234663852886e38, torch.float32, True),
    ],
)
def test_what_does_not_fit_the_output_is_told(value: float, dtype: torch.dtype, is_finite: bool) -> None:  # noqa: FBT001
    assert fused.merge(one(value), FusedMerge((1.0,)), torch.empty(1, dtype=dtype)) is is_finite


def test_a_task_vector_that_overflows_is_told() -> None:
    # 3e38 − (−3e38) is infinite, and the mask would drop it
    band = Band((0.0, 0), (1.0, 0), 0)
    program = FusedMerge((1.0,), of_deltas=True, masks=(band,), base_share=1.0)
    assert not fused.merge(one(3e38, -3e38), program, torch.empty(1))


def windows_of(model: int, n_models: int, low: int = 0, high: int = 0x7F80_0000) -> Windows:
    """Return one window, of one of the models."""
    of_model = (np.arange(n_models + 1) > model).astype(np.int64)
    return Windows(of_model, np.array([low], dtype=np.int32), np.array([high], dtype=np.int32))


SIGNS = FusedMerge((1.0, 1.0), of_deltas=True, election=Election((1.0, 1.0), 1, "mean"), base_share=1.0)


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("row", [0, 1, 2])
def test_what_is_no_number_is_not_counted(value: float, dtype: torch.dtype, row: int) -> None:
    numbers = torch.ones(3, 5000)
    numbers[row, 4321] = value
    rows = rows_as(Piece("w", (5000,), 0, 0, numbers[0], numbers[1:]), dtype)
    for model in (0, 1):
        with pytest.raises(fusion.NotClean):
            fused.count_keys(rows, windows_of(model, 2))
    with pytest.raises(fusion.NotClean):
        fused.count_signs(rows, SIGNS)
    if row > 0:
        with pytest.raises(fusion.NotClean):
            fused.count_signs(rows.without_base(), replace(SIGNS, of_deltas=False))


def test_a_task_vector_that_overflows_is_counted() -> None:
    rows = Piece("w", (1,), 0, 0, torch.tensor([-3e38]), torch.tensor([[3e38], [1.0]])).rows
    (n_above, keys), *_ = fused.count_keys(rows, windows_of(0, 2, low=0x7F7F_FFFF))
    assert (n_above, keys.tolist()) == (0, [0x7F80_0000])
    assert fused.count_signs(rows, SIGNS) == 1


def test_products_are_rounded_once() -> None:
    # 0.1 · 3 and the sum in one rounding, as torch's addition with alpha does; in two it is another float64
    weights = (1.0, 0.1)
    finetuned = torch.tensor([[-0.3], [3.0]])
    piece = Piece("w", (1,), 0, 0, None, finetuned)
    out = torch.empty(1)
    fused.merge(piece.rows, FusedMerge(weights), out)
    assert same_bits(out, precision.round_to_float32(precision.weighted_sum(finetuned, weights)))


@pytest.mark.parametrize("failure", [ImportError("no numba"), OSError("LLVM"), RuntimeError("no locator")])
def test_without_kernels_there_is_a_word_in_the_log_and_no_failure(
    failure: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_name: str) -> ModuleType:
        raise failure

    monkeypatch.setattr(fused, "_loaded", [])
    monkeypatch.setattr(fused, "import_module", fail)
    with caplog.at_level(logging.WARNING):
        assert not fused.load()
    assert "merges run without fused kernels" in caplog.text


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_variances_and_overlaps_are_those_of_torch(dtype: torch.dtype) -> None:
    base, models = draw_models(5, n=4)
    piece = TensorSource(base, models, (1.0,) * 4).read("a", 0, 37 * 61)
    assert piece.base is not None
    deltas = (piece.finetuned - piece.base).double()
    mean = precision.weighted_sum(deltas, [1.0] * 4).div_(4)
    expected = precision.weighted_sum([(delta - mean).square() for delta in deltas], [1.0] * 4)
    rows = rows_as(piece, dtype)
    assert torch.equal(fused.spread(rows), expected)
    overlaps = Overlaps("", 0.25)
    assert torch.equal(overlaps._count_rows(rows)[1], overlaps._count(piece)[1])


MASKED: list[tuple[str, dict[str, Any]]] = [
    ("emr", {}),
    ("emr", {"rescale": "tensor_mean"}),
    ("emr", {"rescale": "none"}),
    ("tall_mask", {}),
    ("tall_mask", {"mask_threshold": 0.0}),
]


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize(("method", "parameters"), MASKED)
def test_fused_masks_are_those_of_the_methods_torch_functions(method: str, parameters: dict[str, Any], n: int) -> None:
    source, program = draw_merge(method, parameters, (1.0,) * n)
    for name, shape, _ in source.tensors:
        for offset, size in ((0, prod(shape)), (prod(shape) // 3, prod(shape) - prod(shape) // 3)):
            if size:
                check_masks(program, source.read(name, offset, size), shape)


@given(seed=st.integers(0, 1 << 20), n=st.integers(1, 4), m=st.integers(1, 5000), spread=st.sampled_from([0.0, 12.0]))
@settings(max_examples=40, deadline=None)
def test_masks_of_any_size_and_magnitude_are_those_of_torch(seed: int, n: int, m: int, spread: float) -> None:
    random = np.random.default_rng(seed)
    numbers = random.normal(size=(n + 1, m)) * 10.0 ** random.normal(-3, spread, (n + 1, m)).clip(-45, 37)
    numbers[random.random((n + 1, m)) < 0.1] = -0.0
    base, *models = ({"w": torch.from_numpy(row)} for row in numbers.astype(np.float32))
    for method, parameters in MASKED:
        source, program = MemoryMerge(load_method(method), parameters).prepare(base, models)
        check_masks(program, source.read("w", 0, m), (m,))


def check_masks(program: MergeProgram, piece: Piece, shape: tuple[int, ...]) -> None:
    """Check what kernels make of a piece's rows against the program's torch functions."""
    merged = program.complete(piece)
    assert merged.merged is not None
    assert merged.base is not None
    masks = [mask for mask in program.patch(merged) if isinstance(mask, Masked)]
    found = program.fuse(piece.tensor, shape)
    assert isinstance(found, FusedMasks)
    for dtype in (torch.float32, torch.bfloat16):
        out = torch.empty(piece.n_elements, dtype=dtype)
        made = fused.mask(piece.rows, found, out)
        assert made is not None
        assert same_bits(out, keep_negative_zeros(merged.merged, merged.base).to(dtype))
        for index, mask in enumerate(masks):
            assert isinstance(mask.is_kept, Tensor)
            assert made.bits[index].tolist() == patches.pack(mask.is_kept.numpy()).content.tolist()
            assert (made.sums is None) == (mask.measure is None)
            if made.sums is not None and mask.measure is not None:
                for one, other in zip(made.sums[index], mask.measure, strict=True):
                    assert exact_sums.to_fraction(one) == exact_sums.to_fraction(other)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("row", [0, 1, 2])
@pytest.mark.parametrize("masks", [FusedMasks(), FusedMasks(0.4), FusedMasks(is_measured=True)])
def test_what_is_not_finite_is_not_masked(value: float, row: int, masks: FusedMasks) -> None:
    numbers = torch.ones(3, 100)
    numbers[row, 70] = value
    piece = Piece("w", (100,), 0, 0, numbers[0], numbers[1:])
    assert fused.mask(piece.rows, masks, torch.empty(100)) is None


def test_a_task_vector_that_overflows_takes_no_side() -> None:
    assert fused.mask(one(3e38, -3e38), FusedMasks(), torch.empty(1)) is None
    assert fused.mask(one(3e38, -3e38), FusedMasks(0.4), torch.empty(1)) is not None
