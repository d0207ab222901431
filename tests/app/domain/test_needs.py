"""What a part reads of its inputs: ranges that hold its tensors, near ones as one, and where a manifest finds them."""

from app.domain.needs import GAP_BYTES, NOWHERE, FileRange, find_needed, find_ranges, within_ranges
from app.domain.parts import only_of, share_out
from app.domain.plans import make_plan
from tests.app.domain.plan_inputs import Layout, card_of, manifest_of, recipe_of

LAYOUT: Layout = {"a": (100,), "b": (200,), "c": ("I64", (10,)), "d": (1 << 19,), "e": (50,)}


def test_a_part_needs_its_own_tensors_and_of_what_is_copied_the_reference_alone() -> None:
    manifests = [manifest_of(LAYOUT) for _ in range(3)]
    recipe = recipe_of(2, shard_bytes=2048, exclude=("e",))
    plan = make_plan(recipe, manifests[0], manifests[1:], card_of())
    shares = share_out(plan, len(plan.files))
    needed = [find_needed(only_of(plan, share), manifests[0], manifests[1:]) for share in shares]
    assert [[sorted(names) for names in of_part] for of_part in needed] == [
        [["a", "b", "c"]] * 3,  # integers are compared, in all of them
        [["d"]] * 3,
        [["e"], [], []],
    ]


def test_without_a_base_model_the_first_model_is_the_reference() -> None:
    manifests = [manifest_of(LAYOUT) for _ in range(2)]
    recipe = recipe_of(2, has_base=False, shard_bytes=2048, exclude=("e",))
    plan = make_plan(recipe, None, manifests, card_of(base_model="unused"))
    last = only_of(plan, share_out(plan, len(plan.files))[-1])
    assert find_needed(last, None, manifests) == [{"e"}, set()]


def test_a_tensor_is_needed_under_the_name_that_the_model_stores_it_by() -> None:
    base = manifest_of({"embed": (10,), "head": (10,)}, tied=[("embed", "head")])
    model = manifest_of({"head": (10,)}, tied=[("embed", "head")])
    plan = make_plan(recipe_of(1), base, [model], card_of())
    assert find_needed(plan, base, [model]) == [{"embed"}, {"head"}]


def test_near_ranges_are_one_and_far_ones_are_not() -> None:
    manifest = manifest_of(LAYOUT)
    at = {tensor.name: tensor for tensor in manifest.tensors}
    assert at["d"].size_bytes > GAP_BYTES
    assert find_ranges(manifest, frozenset("ac")) == [
        FileRange(path="model.safetensors", begin=at["a"].begin, end=at["c"].end)
    ]
    assert [one.end for one in find_ranges(manifest, frozenset("ace"))] == [at["c"].end, at["e"].end]
    assert find_ranges(manifest, frozenset()) == []


def test_a_manifest_within_ranges_finds_each_tensor_in_its_range_and_others_nowhere() -> None:
    manifest = manifest_of(LAYOUT)
    at = {tensor.name: tensor for tensor in manifest.tensors}
    ranges = find_ranges(manifest, frozenset("be"))
    placed = {tensor.name: tensor for tensor in within_ranges(manifest, ranges, ()).tensors}
    assert [(placed["b"].file, placed["b"].begin, placed["b"].end) for _ in "b"] == [(ranges[0].name, 0, 800)]
    assert (placed["e"].file, placed["e"].begin) == (ranges[1].name, 0)
    assert placed["e"].file == f"model.safetensors.{at['e'].begin}-{at['e'].end}"
    assert {placed[name].file for name in "acd"} == {NOWHERE}
    assert within_ranges(manifest, [], {"model.safetensors"}) == manifest
