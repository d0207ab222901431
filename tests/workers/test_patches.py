from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from workers import patches
from workers.patches import LowRank, Masked, Part, Patch, Replacement, Signed, Whole

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
dtypes = st.sampled_from(DTYPES)
shapes = st.sampled_from([(), (1,), (5,), (3, 4), (2, 1, 2, 2), (300, 3)])
seeds = st.integers(0, 10_000)
quickly = settings(max_examples=60, deadline=None)


def stored(parts: list[Part]) -> dict[str, Tensor]:
    """Return the parts of one piece as a file holds them."""
    found: dict[str, Tensor] = {}
    for part in parts:
        if isinstance(part.content, Tensor):
            found[part.role] = part.content
        else:
            found[part.role] = torch.from_numpy(part.content.content)
    return found


def draw(seed: int, shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(3)]


def round_trip(patch: Patch, shared: Tensor, base: Tensor | None = None) -> Tensor:
    parts = stored(patches.encode(patch, shared.dtype, tuple(shared.shape), 0))
    tensor = shared.clone()
    patches.apply(tensor, parts, base)
    return tensor


@quickly
@given(seed=seeds, shape=shapes, dtype=dtypes, share=st.floats(0, 1))
def test_a_replacement_gives_the_models_own_bits(
    seed: int, shape: tuple[int, ...], dtype: torch.dtype, share: float
) -> None:
    shared, model, noise = draw(seed, shape, dtype)
    kept = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share
    indices = kept.view(-1).nonzero().view(-1)
    patch = Replacement(indices, model.float().view(-1)[indices])
    assert torch.equal(round_trip(patch, shared), torch.where(kept, model, shared))
    assert torch.equal(round_trip(Whole(model.float()), noise), model)


@quickly
@given(seed=seeds, shape=shapes, dtype=dtypes, scale=st.floats(0, 4, width=32))
def test_a_mask_takes_entries_of_the_shared_model_as_far_as_its_scale_says(
    seed: int, shape: tuple[int, ...], dtype: torch.dtype, scale: float
) -> None:
    shared, base, noise = draw(seed, shape, dtype)
    is_kept = noise > 0
    found = round_trip(Masked(is_kept.view(-1), scale), shared, base)
    moved = base.double() + scale * (shared.double() - base.double())
    assert torch.equal(found, torch.where(is_kept, moved.float().to(dtype), base))
    exact = round_trip(Masked(is_kept.view(-1), 1.0), shared, base)
    assert torch.equal(exact, torch.where(is_kept, shared, base))


@quickly
@given(seed=seeds, shape=shapes, dtype=dtypes, scale=st.floats(0, 4, width=32))
def test_signs_move_every_entry_by_the_scale(
    seed: int, shape: tuple[int, ...], dtype: torch.dtype, scale: float
) -> None:
    shared, noise, _ = draw(seed, shape, dtype)
    found = round_trip(Signed(noise.view(-1) >= 0, scale), shared)
    expected = shared.double() + torch.where(noise >= 0, scale, -scale).double()
    assert torch.equal(found, expected.float().to(dtype))


@quickly
@given(seed=seeds, rows=st.integers(1, 600), columns=st.integers(1, 9), rank=st.integers(1, 3), dtype=dtypes)
def test_a_product_is_added_in_float64_and_rounded_once(
    seed: int, rows: int, columns: int, rank: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(rows, columns, generator=generator).to(dtype)
    left = torch.randn(rows, rank, generator=generator).to(dtype)
    right = torch.randn(rank, columns, generator=generator).to(dtype)
    found = round_trip(LowRank(a=right, b=left), shared)
    expected = shared.double().numpy() + left.double().numpy() @ right.double().numpy()
    spacing = torch.finfo(dtype).eps
    np.testing.assert_allclose(found.double().numpy(), expected, rtol=2 * spacing, atol=spacing)


PATCHES: list[Any] = [
    Replacement(torch.tensor([0, 4, 11]), torch.tensor([1.0, 2.0, 3.0])),
    Whole(torch.arange(12.0)),
    LowRank(a=torch.ones(1, 4), b=torch.ones(3, 1)),
    Masked(torch.arange(12) % 2 == 0, 1.5),
    Signed(torch.arange(12) % 3 == 0, 0.25),
]


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: type(patch).__name__)
def test_a_patch_is_removed_in_place(patch: Patch) -> None:
    shared, base, _ = draw(1, (3, 4), torch.float32)
    parts = stored(patches.encode(patch, torch.float32, (3, 4), 0))
    tensor = shared.clone()
    patches.apply(tensor, parts, base)
    assert not torch.equal(tensor, shared)
    patches.remove(tensor, parts, shared)
    assert torch.equal(tensor, shared)


@pytest.mark.parametrize(
    "patch",
    [Replacement(torch.empty(0, dtype=torch.int64), torch.empty(0)), LowRank(a=torch.empty(0, 4), b=torch.empty(3, 0))],
    ids=["replacement", "low rank"],
)
def test_a_patch_that_changes_nothing_takes_no_room(patch: Patch) -> None:
    shared = torch.ones(3, 4)
    assert patches.encode(patch, torch.float32, (3, 4), 0) == []
    patches.apply(shared, {}, None)
    patches.remove(shared, {}, torch.zeros(3, 4))
    assert torch.equal(shared, torch.ones(3, 4))


def test_an_encoded_patch_shares_no_memory_with_the_piece() -> None:
    values = torch.arange(4.0)
    (part,) = patches.encode(Whole(values), torch.float32, (4,), 0)
    values.zero_()
    assert isinstance(part.content, Tensor)
    assert part.content.tolist() == [0.0, 1.0, 2.0, 3.0]


def test_indices_count_from_the_start_of_the_tensor_and_are_as_narrow_as_it_allows() -> None:
    patch = Replacement(torch.tensor([0, 2]), torch.ones(2))
    near = stored(patches.encode(patch, torch.float32, (10,), 5))
    far = stored(patches.encode(patch, torch.float32, (2**16, 2**16), 2**31))
    assert (near["indices"].tolist(), near["indices"].dtype) == ([5, 7], torch.int32)
    assert (far["indices"].tolist(), far["indices"].dtype) == ([2**31, 2**31 + 2], torch.int64)


def test_the_first_bit_is_the_lowest_of_the_first_byte() -> None:
    packed = patches.pack(np.array([True, False, False, True, False, False, False, False, False, True]))
    assert (packed.content.tolist(), packed.n) == ([0b1001, 0b10], 10)
    assert patches.unpack(torch.from_numpy(packed.content), 10).nonzero().view(-1).tolist() == [0, 3, 9]


def test_a_mask_without_its_base_is_our_fault() -> None:
    parts = stored(patches.encode(Masked(torch.ones(2, dtype=torch.bool), 1.0), torch.float32, (2,), 0))
    with pytest.raises(ValueError, match="beside its base"):
        patches.apply(torch.zeros(2), parts, None)
