"""Recipes as mergekit writes them: read again they are the same recipe, and what it cannot say is named."""

from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.catalog import load_catalog
from app.domain.errors import NotAcceptable
from app.domain.mergekit.conditions import text_of
from app.domain.mergekit.reading import read_merge
from app.domain.mergekit.settings import IN_BLOCKS, glob_of
from app.domain.mergekit.writing import SILENT, write_merge
from app.domain.recipes import ENGINE_VERSION, Override, PinnedCheckpoint, Recipe, RecipeModel
from app.domain.requests import MergeRequest
from app.domain.tensor_parameters import group_tensors

AS_MERGEKIT = {"trim_scope": "tensor", "vote": "weighted", "zero_vote": "positive"}
TIES = {"density": 0.5, "scaling_coefficient": 1.0, "reduce": "mean", **AS_MERGEKIT}


def pinned(name: str) -> PinnedCheckpoint:
    return PinnedCheckpoint(content_digest=name * 64, weights_digest=name * 64)


def model(name: str, weight: float = 1.0, parameters: dict[str, Any] | None = None) -> RecipeModel:
    return RecipeModel(**pinned(name).model_dump(), weight=weight, parameters=parameters or {})


def recipe_of(method: str = "ties", **fields: Any) -> Recipe:
    card = load_catalog().method(method)
    values = {
        "method": method,
        "method_version": card.version,
        "base_model": pinned("f") if card.base_model == "required" else None,
        "models": (model("a"), model("b", 0.5)),
        "parameters": TIES if method == "ties" else {},
        "shard_bytes": 5_000_000_000,
        **fields,
    }
    return Recipe.model_validate(values)


def read_again(recipe: Recipe) -> Recipe:
    """Return the recipe that the written document makes, as services pin it."""
    asked = MergeRequest.model_validate(read_merge(write_merge(recipe).encode()).request)
    assert asked.engine_version == ENGINE_VERSION
    card, parameters = load_catalog().check(
        asked.method,
        asked.parameters,
        has_base_model=asked.base_model is not None,
        weights=[one.weight for one in asked.models],
    )
    return Recipe(
        method=card.name,
        method_version=asked.method_version or 0,
        base_model=_pin(asked.base_model) if asked.base_model else None,
        models=tuple(model(_pin(one.checkpoint).content_digest[0], one.weight, one.parameters) for one in asked.models),
        parameters=parameters,
        seed=asked.seed,
        output_dtype=asked.output.dtype,
        shard_bytes=asked.output.shard_bytes or 0,
        overrides=tuple(Override.model_validate(one.model_dump(mode="json")) for one in asked.overrides),
    )


def _pin(ref: str) -> PinnedCheckpoint:
    return pinned(ref.removeprefix("sha256:")[0])


def refusals_of(recipe: Recipe) -> dict[str, str]:
    with pytest.raises(NotAcceptable) as found:
        write_merge(recipe)
    return {fault.pointer: fault.message for fault in found.value.errors}


def test_a_document_is_what_mergekit_reads() -> None:
    document = yaml.safe_load(write_merge(recipe_of(output_dtype="bfloat16", seed=3)))
    assert document == {
        "merge_method": "ties",
        "base_model": "sha256:" + "f" * 64,
        "models": [
            {"model": "sha256:" + "a" * 64, "parameters": {"weight": 1.0}},
            {"model": "sha256:" + "b" * 64, "parameters": {"weight": 0.5}},
        ],
        "parameters": {"lambda": 1.0, "density": 0.5, "normalize": True},
        "dtype": "float32",
        "out_dtype": "bfloat16",
        "amalgam": {
            "output": {"shard_bytes": 5_000_000_000}, "seed": 3, "method_version": 1, "engine_version": ENGINE_VERSION,
        },
    }  # fmt: skip


# --- there and back -----------------------------------------------------------------------------------------------

numbers = st.floats(0.015625, 0.984375, width=16)
WORDS = ("mlp", "attn.q", "norm", "a*b", "x[0]", "what?")
words = st.sampled_from(WORDS)


@st.composite
def settings_of(draw: Any, name: str, value: st.SearchStrategy[Any]) -> tuple[Any, list[Override]]:
    """Draw what holds for all, and overrides of the kind that mergekit can say."""
    changes: list[tuple[str, Any]] = []
    for word in draw(st.lists(words, max_size=3, unique=True)):
        changes.append((glob_of(word), draw(value)))
        if draw(st.booleans()):
            changes.append((IN_BLOCKS + glob_of(word)[1:], [changes[-1][1], draw(value), draw(value)]))
    first = draw(value)
    if draw(st.booleans()):
        changes.insert(0, (IN_BLOCKS, [first, draw(value)]))
    return first, [Override(match=match, parameters={name: one}) for match, one in changes]


NAMES = [f"{place}{word}.w" for word in WORDS for place in ("", *(f"layers.{n}." for n in range(3)))]


@settings(deadline=None)
@given(density=settings_of("density", numbers), scale=settings_of("scaling_coefficient", numbers), data=st.data())
def test_overrides_of_parameters_come_back(density: Any, scale: Any, data: st.DataObject) -> None:
    reduce = data.draw(st.sampled_from(["mean", "sum"]))
    recipe = recipe_of(
        parameters={**TIES, "density": density[0], "scaling_coefficient": scale[0], "reduce": reduce},
        overrides=(*scale[1], *density[1]),
        seed=data.draw(st.integers(0, 9)),
        output_dtype=data.draw(st.sampled_from([None, "float32", "float16", "bfloat16"])),
    )
    again = read_again(recipe)
    assert group_tensors(again, NAMES) == group_tensors(recipe, NAMES)
    assert again.model_copy(update={"overrides": ()}).digest == recipe.model_copy(update={"overrides": ()}).digest


@settings(deadline=None, max_examples=40)
@given(own=settings_of("density", numbers))
def test_a_models_own_parameters_come_back(own: Any) -> None:
    recipe = recipe_of(
        models=(model("a"), model("b", 0.5, {"density": own[0]})),
        parameters={**TIES, "density": 1.0},
        overrides=tuple(Override(match=one.match, models=(None, one.parameters)) for one in own[1]),
    )
    again = read_again(recipe)
    assert group_tensors(again, NAMES) == group_tensors(recipe, NAMES)
    assert again.models == recipe.models


def test_what_goes_with_a_models_own_density_comes_back() -> None:
    recipe = recipe_of(
        "breadcrumbs",
        models=(
            model("a"),
            model("b", 0.5, {"density": 0.2}),
            model("c", 1.0, {"density": 1.0, "outlier_fraction": 0.0}),
        ),
        parameters=load_catalog().check("breadcrumbs", {"density": 0.5}, has_base_model=True, weights=[1.0] * 3)[1]
        | {"scope": "tensor"},
    )
    assert read_again(recipe).digest == recipe.digest


def test_a_density_for_some_tensors_of_one_model_cannot_stand_beside_overrides() -> None:
    recipe = recipe_of(
        overrides=(
            Override(match="*mlp*", parameters={"density": 0.1}),
            Override(match="*attn*", models=({"density": 0.2}, None)),
        )
    )
    assert "mergekit takes either" in refusals_of(recipe)["/overrides"]


@settings(deadline=None)
@given(
    weights=st.lists(numbers, min_size=2, max_size=2),
    changes=st.lists(
        st.tuples(words, st.lists(numbers, min_size=2, max_size=2)), max_size=3, unique_by=lambda one: one[0]
    ),
)
def test_overrides_of_weights_come_back(weights: list[float], changes: list[tuple[str, list[float]]]) -> None:
    recipe = recipe_of(
        "average",
        models=(model("a", weights[0]), model("b", weights[1])),
        parameters={"normalize": True},
        overrides=tuple(Override(match=glob_of(word), weights=tuple(values)) for word, values in changes),
    )
    assert read_again(recipe) == recipe


@pytest.mark.parametrize(
    "recipe",
    [
        recipe_of("average", parameters={"normalize": False}),
        recipe_of("task_arithmetic", parameters={"scaling_coefficient": 0.3}),
        recipe_of("slerp", models=(model("a"), model("b")), parameters={"t": 0.25}),
        recipe_of("breadcrumbs", parameters={
            "density": 0.5, "elect_signs": True, "mask_mode": "band", "outlier_fraction": 0.125,
            "scaling_coefficient": 0.3, "scope": "tensor"}),
        recipe_of("breadcrumbs", parameters={
            "density": 1.0, "elect_signs": False, "mask_mode": "band", "outlier_fraction": 0.0,
            "scaling_coefficient": 1.0, "scope": "tensor"},
            overrides=(Override(match="*mlp*", parameters={"density": 0.5, "outlier_fraction": 0.25}),)),
    ],
    ids=lambda recipe: recipe.method,
)  # fmt: skip
def test_every_method_comes_back(recipe: Recipe) -> None:
    assert read_again(recipe) == recipe


def test_slices_come_back() -> None:
    slices = [
        {"sources": [{"model": 0, "layer_range": [0, 4]}]},
        {"sources": [{"model": 1, "layer_range": [2, 4], "scaling": [{"match": "*o_proj*", "factor": 0.0}]}]},
        {"sources": [{"model": 0, "layer_range": [4, 6]}]},
    ]
    scaling = [{"match": "*", "factor": 2.0}, {"match": "*mlp*", "factor": 0.5}]
    recipe = recipe_of(
        "passthrough",
        base_model=pinned("f"),
        models=(model("a"), model("b")),
        parameters={"scaling": scaling, "slices": slices},
    )
    assert read_again(recipe) == recipe


@given(text=st.text(min_size=1, max_size=12))
def test_a_glob_of_a_text_is_known_again(text: str) -> None:
    assert text_of(glob_of(text)) == text


@pytest.mark.parametrize("glob", ["mlp", "*mlp", "*a*b*", "*[ab]*", "*x?*", "**", "*"])
def test_other_globs_are_no_texts(glob: str) -> None:
    assert text_of(glob) is None


def test_no_field_of_a_recipe_is_forgotten() -> None:
    written = {
        "method", "method_version", "engine_version", "base_model", "models", "parameters", "overrides", "seed",
        "output_dtype", "shard_bytes",
    }  # fmt: skip
    assert set(Recipe.model_fields) == written | set(SILENT) | {"format_version"}


# --- what cannot be said ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "pointer", "message"),
    [
        (recipe_of(parameters={**TIES, "trim_scope": "global"}), "/parameters/trim_scope", "always has 'tensor'"),
        (recipe_of(parameters={**TIES, "reduce": "max"}), "/parameters/reduce", "no 'max'"),
        (recipe_of(parameters={**TIES, "new": 1}), "/parameters/new", "no such parameter"),
        (recipe_of(exclude=("a",)), "/exclude", "nothing of the kind"),
        (recipe_of(nan_policy="zero"), "/nan_policy", "nothing of the kind"),
        (recipe_of(merge_buffers=False), "/merge_buffers", "nothing of the kind"),
        (recipe_of(models=(model("a"), model("a"))), "/models", "named twice"),
        (recipe_of("average", base_model=pinned("f"), parameters={"normalize": True}), "/base_model", "for an input"),
        (recipe_of("slerp", base_model=pinned("f"), parameters={"t": 0.1}), "/base_model", "not models[0]"),
        (recipe_of(overrides=(Override(match="a.b", parameters={"density": 0.1}),)),
         "/overrides/0/parameters/density", "is no filter of mergekit's"),
        (recipe_of(overrides=(Override(match="*a*", weights=(1.0, (0.0, 1.0))),)), "/overrides/0", "over the layers"),
        (recipe_of(parameters={**TIES, "density": [0.1, 0.2]}), "/parameters/density", "outside of the layers"),
        (recipe_of("awd_task_arithmetic"), "/method", "mergekit has no awd_task_arithmetic"),
        (recipe_of("breadcrumbs", parameters={
            "density": 1.0, "elect_signs": False, "mask_mode": "band", "outlier_fraction": 0.01,
            "scaling_coefficient": 0.3, "scope": "tensor"}), "/parameters/outlier_fraction", "0 where it is 1"),
        (recipe_of("passthrough", parameters={}), "/models/1", "copies one model"),
        (recipe_of("passthrough", models=(model("a"),), parameters={"scaling": [{"match": "a", "factor": 1.0}]}),
         "/parameters/scaling/0", "is no filter"),
    ],
)  # fmt: skip
def test_what_mergekit_cannot_say_is_named(recipe: Recipe, pointer: str, message: str) -> None:
    found = refusals_of(recipe)
    assert pointer in found, found
    assert message in found[pointer]
