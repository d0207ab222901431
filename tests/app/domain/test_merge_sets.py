"""Which tensors take part: globs, policies, ties, integers; and what is refused or said about them."""

from typing import Any

import pytest

from app.domain.errors import IncompatibleCheckpoints, Invalid
from app.domain.merge_sets import MergeSet, find_merge_set, list_warnings
from tests.app.domain.plan_inputs import Layout, card_of, manifest_of, recipe_of

LAYOUT: Layout = {"layer.0.bias": (3,), "layer.0.weight": (3, 2), "layer.1.weight": (3, 2), "head.weight": (2, 3)}


def find(recipe_changes: dict[str, Any], base: Layout, *models: Layout) -> MergeSet:
    recipe = recipe_of(len(models), **recipe_changes)
    return find_merge_set(recipe, manifest_of(base), [manifest_of(model) for model in models])


def test_all_floating_tensors_take_part() -> None:
    assert list(find({}, LAYOUT, LAYOUT).merged) == sorted(LAYOUT)


def test_integers_and_booleans_are_copied() -> None:
    layout: Layout = {"a": (2,), "ids": ("I64", (1, 4)), "flags": ("BOOL", (2,)), "bytes": ("U8", (2,))}
    found = find({}, layout, layout)
    assert found.copied == {"ids": "integer", "flags": "integer", "bytes": "integer"}
    assert list_warnings(found, card_of()) == (
        "Tensors that hold integers are copied from the base model: bytes, flags, ids.",
    )


def test_include_and_exclude_are_globs_and_exclude_wins() -> None:
    found = find({"include": ["layer.*"], "exclude": ["*.bias"]}, LAYOUT, LAYOUT)
    assert list(found.merged) == ["layer.0.weight", "layer.1.weight"]
    assert found.copied["layer.0.bias"] == "excluded"


def test_globs_are_case_sensitive_and_name_what_is_near_when_nothing_matches() -> None:
    with pytest.raises(Invalid, match=r"'layer.0.wieght' matches none .* near matches: layer.0.weight") as caught:
        find({"exclude": ["*.bias", "layer.0.wieght"]}, LAYOUT, LAYOUT)
    assert caught.value.errors[0].pointer == "/exclude/1"
    assert caught.value.errors[0].did_you_mean == "layer.0.weight"
    with pytest.raises(Invalid, match=r"'LAYER\*' matches none"):
        find({"include": ["LAYER*"]}, LAYOUT, LAYOUT)


def test_a_merge_of_nothing_is_refused() -> None:
    with pytest.raises(Invalid, match="nothing is left to merge among 4 tensors"):
        find({"exclude": ["*"]}, LAYOUT, LAYOUT)


def test_strict_names_every_missing_extra_and_misshapen_tensor() -> None:
    other: Layout = {**LAYOUT, "layer.0.weight": (3, 3), "more": (1,)}
    del other["layer.1.weight"]  # type: ignore[attr-defined]
    with pytest.raises(IncompatibleCheckpoints) as caught:
        find({}, LAYOUT, LAYOUT, other)
    assert [problem.message for problem in caught.value.errors] == [
        "models[1]: tensor 'layer.0.weight' has shape [3, 3], expected [3, 2]",
        "models[1]: tensor 'layer.1.weight' is missing from this model",
        "models[1]: tensor 'more' is in this model but not in the one it is compared with",
    ]
    assert "(and 2 more)" in caught.value.detail
    assert "'intersection'" in caught.value.detail


def test_excluded_tensors_may_differ() -> None:
    other: Layout = {**LAYOUT, "head.weight": (7, 3), "head.bias": (7,)}
    found = find({"exclude": ["head.*"]}, LAYOUT, other)
    assert "head.weight" not in found.merged


def test_intersection_takes_missing_tensors_from_the_base_and_leaves_out_extra_ones() -> None:
    fewer = {name: shape for name, shape in LAYOUT.items() if name != "head.weight"}
    more: Layout = {**LAYOUT, "more": (1,)}
    found = find({"tensors": "intersection"}, LAYOUT, fewer, more)
    assert found.copied == {"head.weight": "missing"}
    assert list_warnings(found, card_of()) == (
        "Tensors that are missing from a model are copied from the base model: head.weight.",
        "Tensors that only some models have are left out: more.",
    )


def test_intersection_does_not_excuse_another_shape() -> None:
    with pytest.raises(IncompatibleCheckpoints, match="has shape"):
        find({"tensors": "intersection"}, {"a": (2,)}, {"a": (3,)})


def test_without_a_base_the_first_model_is_the_reference() -> None:
    recipe = recipe_of(2, has_base=False)
    layout: Layout = {"a": (2,), "ids": ("I64", (2,))}
    found = find_merge_set(recipe, None, [manifest_of(layout), manifest_of(layout)])
    assert not found.has_base
    assert "copied from models[0]: ids" in list_warnings(found, card_of())[0]


def test_running_statistics_are_merged_with_a_warning_or_copied() -> None:
    layout: Layout = {"w": (2,), "bn.running_mean": (2,), "bn.running_var": (2,)}
    merged = find({}, layout, layout)
    assert len(merged.merged) == 3
    assert "recalibrate" in list_warnings(merged, card_of())[0]
    assert set(find({"merge_buffers": False}, layout, layout).copied.values()) == {"buffer"}


def test_mixed_dtypes_are_merged_with_a_warning() -> None:
    found = find({}, {"a": ("F32", (2,))}, {"a": ("BF16", (2,))})
    assert list_warnings(found, card_of()) == ("The inputs mix dtypes (BF16, F32); all arithmetic is float32.",)


def test_floats_of_eight_bits_are_refused() -> None:
    with pytest.raises(IncompatibleCheckpoints, match="'a' has dtype F8_E4M3, expected one of BF16, F16, F32, F64"):
        find({}, {"a": ("F8_E4M3", (2,))}, {"a": ("F8_E4M3", (2,))})


def test_a_dominant_tensor_is_warned_of_where_the_whole_model_is_counted() -> None:
    layout: Layout = {"embeddings": (60,), **{f"w{index}": (10,) for index in range(10)}}
    found = find({}, layout, layout)
    assert list_warnings(found, card_of()) == ()
    assert "embeddings holds 38% of all merged entries" in list_warnings(found, card_of(statistic_passes=1))[0]


TIED = ("embed_tokens.weight", "lm_head.weight")


def test_tied_tensors_count_once_and_are_selected_together() -> None:
    layout: Layout = {"embed_tokens.weight": (4, 2), "lm_head.weight": (4, 2), "w": (2,)}
    manifest = manifest_of(layout, tied=[TIED])
    found = find_merge_set(recipe_of(), manifest, [manifest])
    assert list(found.merged) == ["embed_tokens.weight", "w"]
    assert found.source("lm_head.weight") == "embed_tokens.weight"
    excluded = find_merge_set(recipe_of(exclude=["lm_head*"]), manifest, [manifest])
    assert list(excluded.merged) == ["w"]


def test_a_model_that_stores_only_the_other_name_of_a_tied_tensor_is_understood() -> None:
    base = manifest_of({"embed_tokens.weight": (4, 2)}, tied=[TIED])
    model = manifest_of({"lm_head.weight": (4, 2)}, tied=[("lm_head.weight",)])
    found = find_merge_set(recipe_of(), base, [model])
    assert found.found[0]["embed_tokens.weight"].name == "lm_head.weight"


def test_a_model_that_unties_makes_all_untied() -> None:
    layout: Layout = {"embed_tokens.weight": (4, 2), "lm_head.weight": (4, 2)}
    found = find_merge_set(recipe_of(), manifest_of(layout, tied=[TIED]), [manifest_of(layout)])
    assert list(found.merged) == ["embed_tokens.weight", "lm_head.weight"]
