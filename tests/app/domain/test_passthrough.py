"""Passthrough from names and shapes: what becomes of which tensor, and what cannot be put together."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.checkpoints import Manifest
from app.domain.errors import AmalgamError, IncompatibleCheckpoints, Invalid, InvalidParameters
from app.domain.passthrough import Layout, lay_out, pin_models
from tests.app.domain.plan_inputs import manifest_of

PARTS: dict[str, Any] = {"attn.q.weight": (4, 4), "mlp.up.weight": (8, 4), "norm.weight": (4,)}
OUTSIDE = {"model.embed_tokens.weight": (10, 4), "model.norm.weight": (4,), "lm_head.weight": (10, 4)}


def deep(n_blocks: int, *, prefix: str = "model.layers", parts: dict[str, Any] = PARTS) -> Manifest:
    """Return a model of some blocks."""
    blocks = {f"{prefix}.{n}.{name}": shape for n in range(n_blocks) for name, shape in parts.items()}
    return manifest_of({**OUTSIDE, **blocks})


def sliced(*runs: tuple[Any, ...], **parameters: Any) -> dict[str, Any]:
    """Return parameters with slices of (model, begin, end)."""
    sources = [
        {"model": model, "layer_range": [begin, end], **(more[0] if more else {})} for model, begin, end, *more in runs
    ]
    return {"slices": [{"sources": [source]} for source in sources], **parameters}


def whence(layout: Layout) -> dict[str, tuple[int, str]]:
    return {copied.name: (copied.model, copied.stored.name) for copied in layout.tensors}


def test_blocks_are_renumbered_and_the_rest_comes_from_the_ends() -> None:
    layout = lay_out(sliced((0, 0, 3), (1, 1, 3), (0, 2, 4)), deep(4), [deep(4), deep(3)])

    found = whence(layout)

    assert [layer.index for layer in layout.layers] == [0, 1, 2, 1, 2, 2, 3]
    assert [layer.model for layer in layout.layers] == [0, 0, 0, 1, 1, 0, 0]
    assert layout.n_layers == 4
    assert found["model.layers.3.mlp.up.weight"] == (1, "model.layers.1.mlp.up.weight")
    assert found["model.layers.6.norm.weight"] == (0, "model.layers.3.norm.weight")
    assert len(found) == 7 * len(PARTS) + len(OUTSIDE)


def test_embeddings_are_those_of_the_first_slice_norm_and_head_those_of_the_last() -> None:
    found = whence(lay_out(sliced((1, 0, 2), (0, 2, 4)), deep(4), [deep(4), deep(4)]))

    assert found["model.embed_tokens.weight"] == (1, "model.embed_tokens.weight")
    assert found["model.norm.weight"] == (0, "model.norm.weight")
    assert found["lm_head.weight"] == (0, "lm_head.weight")


def test_a_head_that_is_the_embeddings_comes_with_them() -> None:
    tied = deep(4).model_copy(update={"tied": (("model.embed_tokens.weight", "lm_head.weight"),)})

    found = whence(lay_out(sliced((1, 0, 2), (0, 2, 4)), tied, [tied, tied]))

    assert found["lm_head.weight"] == (1, "lm_head.weight")


@given(n_blocks=st.integers(2, 12))
def test_all_blocks_of_one_model_are_that_model(n_blocks: int) -> None:
    found = whence(lay_out(sliced((0, 0, n_blocks)), deep(n_blocks), [deep(n_blocks)]))

    assert found == {tensor.name: (0, tensor.name) for tensor in deep(n_blocks).tensors}


def test_without_slices_the_first_model_is_copied_and_the_others_are_named() -> None:
    layout = lay_out({}, deep(2), [deep(2), deep(3)])

    assert whence(layout) == {tensor.name: (0, tensor.name) for tensor in deep(2).tensors}
    assert layout.layers == ()
    assert layout.warnings == ("models[1] is not used: there are no slices.",)


def test_a_model_in_no_slice_is_named() -> None:
    assert lay_out(sliced((0, 0, 2)), deep(2), [deep(2), deep(2)]).warnings == ("models[1] is in no slice.",)


def test_factors_of_a_source_come_after_those_of_all() -> None:
    scaling = [{"match": "*mlp*", "factor": 0.0}, {"match": "*layers.1.*", "factor": 3.0}]
    parameters = sliced((0, 0, 2), (0, 1, 2, {"scaling": scaling}), scaling=[{"match": "*", "factor": 2.0}])

    factors = {copied.name: copied.factor for copied in lay_out(parameters, deep(2), [deep(2)]).tensors}

    assert factors["model.layers.0.mlp.up.weight"] == 2.0
    assert factors["model.layers.2.mlp.up.weight"] == 3.0  # matched by its name in its model
    assert factors["model.norm.weight"] == 2.0


def test_integers_have_no_factor() -> None:
    model = manifest_of({"ids": ("I64", (3,)), "w": (2,)})
    factors = {
        one.name: one.factor for one in lay_out({"scaling": [{"match": "*", "factor": 2.0}]}, model, [model]).tensors
    }
    assert factors == {"ids": 1.0, "w": 2.0}


def test_numbers_within_a_block_are_no_depth_and_small_towers_none_of_the_model() -> None:
    parts = {f"experts.{n}.w": (4, 4) for n in range(4)} | {"mlp.w": (4, 4)}
    layout = {f"h.{n}.{name}": shape for n in range(3) for name, shape in parts.items()}
    model = manifest_of({**layout, "head.0.w": (4,)})

    found = whence(lay_out(sliced((0, 0, 3), (0, 1, 2)), model, [model]))

    assert found["h.3.experts.2.w"] == (0, "h.1.experts.2.w")
    assert found["head.0.w"] == (0, "head.0.w")


def test_a_first_block_of_its_own_stays_the_first() -> None:
    names = {f"h.{n}.{part}": (2,) for n in range(4) for part in ("a", "b", "c")} | {"h.0.bias": (2,)}
    model = manifest_of(names)

    assert whence(lay_out(sliced((0, 0, 4), (0, 2, 4)), model, [model]))["h.0.bias"] == (0, "h.0.bias")
    for runs in [((0, 1, 3),), ((0, 0, 2), (0, 0, 2))]:
        with pytest.raises(Invalid, match="only block 0 of models"):
            lay_out(sliced(*runs), model, [model])


@pytest.mark.parametrize(
    ("models", "runs", "error", "message"),
    [
        ([deep(4)], [(0, 2, 5)], Invalid, r"within \[0, 4\].*found \[2, 5\]"),
        ([deep(4)], [(0, 3, 3)], Invalid, r"found \[3, 3\]"),
        ([manifest_of(OUTSIDE)], [(0, 0, 1)], IncompatibleCheckpoints, "found none"),
        ([manifest_of({f"{tower}.{n}.{p}": (2,) for tower in "ab" for n in range(2) for p in "xy"})], [(0, 0, 1)],
         IncompatibleCheckpoints, "found a.0, …, b.0, …"),
        ([deep(4), deep(4, prefix="h")], [(0, 0, 2), (1, 2, 4)], IncompatibleCheckpoints, "its blocks are 'h'"),
        ([deep(4), deep(4, parts={**PARTS, "norm.weight": (5,)})], [(0, 0, 2), (1, 2, 4)],
         IncompatibleCheckpoints, "shapes"),
        ([deep(4), deep(4, parts={**PARTS, "extra": (5,)})], [(0, 0, 2), (1, 2, 4)],
         IncompatibleCheckpoints, "'extra' is in the blocks"),
    ],
)  # fmt: skip
def test_what_cannot_be_put_together_is_refused(
    models: list[Manifest], runs: list[tuple[int, int, int]], error: type[AmalgamError], message: str
) -> None:
    with pytest.raises(error, match=message):
        lay_out(sliced(*runs), models[0], models)


def test_refs_become_indices() -> None:
    parameters = sliced(("b", 0, 1), (0, 1, 2, {"scaling": [{"match": "a", "factor": 1.5}]}), scaling=[])

    pinned = pin_models(parameters, ["a", "b"])

    assert pinned == sliced((1, 0, 1), (0, 1, 2, {"scaling": [{"match": "a", "factor": 1.5}]}), scaling=[])
    with pytest.raises(InvalidParameters) as found:
        pin_models(sliced(("modle", 0, 1), (7, 0, 1)), ["model"])
    assert [fault.pointer for fault in found.value.errors] == [
        f"/parameters/slices/{at}/sources/0/model" for at in range(2)
    ]
    assert found.value.errors[0].did_you_mean == "model"
