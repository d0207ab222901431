"""The plan of a merge: where every byte lies, what it costs; from headers alone."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue

from app.domain.catalog import StepCard
from app.domain.checkpoints import DTYPE_BYTES
from app.domain.headers import parse_header
from app.domain.plans import (
    PROCESS_BYTES,
    STATISTICS_BYTES,
    WHOLE_TENSORS_BYTES,
    MergePlan,
    make_plan,
    piece_elements,
)
from app.domain.recipes import Override, PinnedStep
from tests.app.domain.plan_inputs import Layout, card_of, manifest_of, recipe_of

LAYOUT: Layout = {"a": (4,), "b": (2, 3), "c": ("I64", (3,)), "d": ()}


def plan_of(layout: Layout = LAYOUT, n_models: int = 2, **changes: Any) -> MergePlan:
    manifest = manifest_of(layout, dtype="BF16")
    return make_plan(recipe_of(n_models, **changes), manifest, [manifest] * n_models, card_of())


def test_one_file_has_the_plain_name_and_no_index() -> None:
    plan = plan_of()
    assert [file.path for file in plan.files] == ["model.safetensors"]
    assert not plan.is_sharded
    assert (plan.n_merged, plan.n_copied) == (3, 1)


def test_tensors_keep_the_bases_dtype_unless_another_is_asked_for() -> None:
    kept = {tensor.name: tensor.dtype for tensor in plan_of().tensors}
    assert kept == {"a": "BF16", "b": "BF16", "c": "I64", "d": "BF16"}
    plan = plan_of(output_dtype="float32", exclude=["b"])
    found = {tensor.name: tensor.dtype for tensor in plan.tensors}
    assert found == {"a": "F32", "b": "BF16", "c": "I64", "d": "F32"}  # what is copied stays as it is


layouts = st.dictionaries(
    st.text("abcxyz._", min_size=1, max_size=8),
    st.tuples(st.sampled_from(["F32", "BF16", "F64", "I64", "U8"]), st.lists(st.integers(0, 5), max_size=3).map(tuple)),
    max_size=12,
)


@given(layout=layouts, shard_bytes=st.integers(1, 500))
def test_files_are_packed_aligned_and_as_their_headers_say(layout: Layout, shard_bytes: int) -> None:
    plan = plan_of({**layout, "always": (3,)}, shard_bytes=shard_bytes)
    assert {tensor.name for tensor in plan.tensors} == {*layout, "always"}
    for file in plan.files:
        header = plan.header(file.path)
        parsed = parse_header(header[8:], file=file.path, file_size=file.size_bytes)
        placed = [tensor for tensor in plan.tensors if tensor.file == file.path]
        assert [tensor.spec for tensor in placed] == sorted(parsed, key=lambda spec: (spec.begin, spec.end))
        assert all(tensor.begin % DTYPE_BYTES[tensor.dtype] == 0 for tensor in placed)
        n_bytes = sum(tensor.end - tensor.begin for tensor in placed)
        assert n_bytes <= shard_bytes or len([tensor for tensor in placed if tensor.end > tensor.begin]) == 1


def test_shards_are_named_as_hugging_face_names_them() -> None:
    plan = plan_of(shard_bytes=12)
    # a (8 bytes); b (12); c (24), beyond the limit by itself; d (2), which c leaves no room for
    assert [file.path for file in plan.files] == [f"model-0000{n}-of-00004.safetensors" for n in (1, 2, 3, 4)]
    assert plan.is_sharded


def test_the_layout_does_not_depend_on_how_the_inputs_are_sharded() -> None:
    manifest = manifest_of(LAYOUT)
    moved = manifest.model_copy(
        update={"tensors": tuple(t.model_copy(update={"file": f"{t.name}.safetensors"}) for t in manifest.tensors)}
    )
    first = make_plan(recipe_of(), manifest, [manifest], card_of())
    assert make_plan(recipe_of(), moved, [moved], card_of()).tensors == first.tensors


def test_a_tied_copy_is_written_as_often_as_the_base_stores_it() -> None:
    layout: Layout = {"embed_tokens.weight": (4, 2), "lm_head.weight": (4, 2)}
    manifest = manifest_of(layout, tied=[("embed_tokens.weight", "lm_head.weight")])
    plan = make_plan(recipe_of(), manifest, [manifest], card_of())
    assert [(tensor.name, tensor.source) for tensor in plan.tensors] == [
        ("embed_tokens.weight", "embed_tokens.weight"),
        ("lm_head.weight", "embed_tokens.weight"),
    ]


def test_a_tied_tensor_missing_from_a_model_is_copied_under_both_names() -> None:
    layout: Layout = {"embed_tokens.weight": (4, 2), "lm_head.weight": (4, 2), "w": (2,)}
    manifest = manifest_of(layout, tied=[("embed_tokens.weight", "lm_head.weight")])
    plan = make_plan(recipe_of(tensors="intersection"), manifest, [manifest_of({"w": (2,)})], card_of())
    assert {tensor.name: tensor.copied_because for tensor in plan.tensors} == {
        "embed_tokens.weight": "missing",
        "lm_head.weight": "missing",
        "w": None,
    }


def test_bytes_are_counted_by_pass() -> None:
    # merged: 4 + 6 + 1 = 11 bfloat16 elements = 22 bytes, of the base and two models; copied: 24 bytes once
    assert plan_of().bytes_read == 3 * 22 + 24
    manifest = manifest_of(LAYOUT, dtype="BF16")
    counted = make_plan(recipe_of(2), manifest, [manifest] * 2, card_of(statistic_passes=2))
    assert (counted.n_passes, counted.bytes_read) == (3, 3 * 3 * 22 + 24)
    unused = make_plan(recipe_of(2), manifest, [manifest] * 2, card_of(base_model="unused"))
    assert unused.bytes_read == 2 * 22 + 24


def test_passes_are_those_that_the_parameters_ask_for() -> None:
    manifest = manifest_of(LAYOUT)
    card = card_of(statistic_passes=3, spared_passes=({"scope": "row"}, {"vote": "any", "density": 1.0}))

    def passes(parameters: dict[str, JsonValue], *overrides: dict[str, JsonValue], step: float = 0.5) -> int:
        pinned = PinnedStep(name="trim", version=1, parameters={"density": step})
        recipe = recipe_of(
            parameters=parameters,
            overrides=tuple(Override(match="*", parameters=one) for one in overrides),
            transforms=(pinned,),
        )
        return make_plan(recipe, manifest, [manifest], card, (step_card,)).n_passes

    step_card = StepCard(
        name="trim", version=1, title="", summary="", source="", granularity="element", parameters={},
        statistic_passes=1, spared_passes=({"density": 1.0},),
    )  # fmt: skip
    assert passes({"scope": "all"}) == 1 + 3 + 1
    assert passes({"scope": "row"}) == 1 + 2 + 1
    assert passes({"scope": "row", "vote": "any", "density": 0.5}) == 1 + 2 + 1  # both values spare a pass, not one
    assert passes({"scope": "row", "vote": "any", "density": 1.0}, step=1.0) == 1 + 1 + 0
    assert passes({"scope": "row"}, {"scope": "all"}) == 1 + 3 + 1  # tensors of the override are read for it


def test_disk_holds_weights_and_what_travels_along() -> None:
    plan = plan_of()
    assert plan.bytes_written == plan.files[0].size_bytes + 100  # config.json
    assert plan.disk_bytes > plan.bytes_written


def test_memory_does_not_grow_with_the_model_but_for_methods_of_whole_tensors() -> None:
    small, large = ({"w": (1 << 20,)}, {"w": (1 << 30,)})

    def memory(layout: Layout, **card: Any) -> int:
        manifest = manifest_of(layout)
        return make_plan(recipe_of(2), manifest, [manifest] * 2, card_of(**card)).peak_memory_bytes

    assert memory(small) == memory(large) < 400_000_000
    assert memory(large, statistic_passes=1) == memory(large) + STATISTICS_BYTES
    assert memory(large, granularity="tensor") > 4 * 3 * (1 << 30)


def test_the_memory_of_whole_tensors_is_that_of_copies_and_squares() -> None:
    def held(shape: tuple[int, ...], *, n_models: int = 2, steps: Sequence[PinnedStep] = (), **card: Any) -> int:
        manifest = manifest_of({"w": shape, "b": (4,)})
        recipe = recipe_of(n_models, transforms=steps)
        return make_plan(recipe, manifest, [manifest] * n_models, card_of(**card)).tensor_bytes

    n = 4096 * 1024
    assert held((4096, 1024)) == 0  # element by element
    assert held((4096, 1024), granularity="tensor") == 4 * n * (2 + 4)
    assert held((4096, 1024), granularity="tensor", n_models=3, working_copies=5) == 4 * n * (3 + 5)
    # models are read as they are needed: three copies and twelve float64 squares of the smaller side, half a copy each
    assert held((4096, 1024), granularity="matrix") == held((1024, 4096), granularity="matrix") == 4 * n * (3 + 6)
    assert held((4096, 32, 32), granularity="matrix", n_models=9) == 4 * n * (3 + 6)
    assert held((n,), granularity="matrix") == 4 * n * 3 + 96
    changed = [PinnedStep(name="awd", version=1, parameters={})]  # models that a transform has changed lie in no file
    assert held((4096, 1024), granularity="matrix", n_models=9, steps=changed) == 4 * n * (9 + 3 + 6)


def test_several_whole_tensors_are_in_flight_as_long_as_they_fit() -> None:
    def memory(side: int) -> MergePlan:
        manifest = manifest_of({"w": (side, side)})
        return make_plan(recipe_of(2), manifest, [manifest] * 2, card_of(granularity="matrix"))

    small, middle, large = (memory(side) for side in (1 << 10, 1 << 12, 1 << 14))
    assert small.peak_memory_bytes == PROCESS_BYTES + 2 * small.tensor_bytes
    assert middle.peak_memory_bytes == PROCESS_BYTES + WHOLE_TENSORS_BYTES
    assert large.peak_memory_bytes == PROCESS_BYTES + large.tensor_bytes


@given(n_models=st.integers(1, 256))
def test_pieces_shrink_when_there_are_many_models(n_models: int) -> None:
    found = piece_elements(n_models)
    assert 4096 <= found <= 131_072
    assert found % 4096 == 0
    assert found * (n_models + 1) * 4 < 1 << 27


def test_a_plan_can_be_stored_and_read_again() -> None:
    plan = plan_of()
    assert MergePlan.model_validate(json.loads(plan.model_dump_json())) == plan


def test_estimated_seconds_grow_with_the_bytes() -> None:
    assert plan_of({"w": (1 << 28,)}).estimated_seconds > plan_of({"w": (1 << 20,)}).estimated_seconds


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_sizes_follow_the_output_dtype(dtype: str) -> None:
    plan = plan_of({"w": (100,)}, output_dtype=dtype)
    assert plan.tensors[0].end - plan.tensors[0].begin == 100 * (4 if dtype == "float32" else 2)
