"""Seconds of arithmetic in a plan: which matrices count, how often, by which sizes, and with which parameters."""

from typing import Any

import pytest

from app.domain.catalog import MatrixWork, MethodCard, StepCard, load_catalog
from app.domain.estimates import seconds_of_work
from app.domain.plans import CORES, make_plan
from app.domain.recipes import PinnedStep, Recipe
from app.domain.tensor_parameters import group_tensors
from tests.app.domain.plan_inputs import card_of, manifest_of, recipe_of

SHAPES = {"bias": (1000,), "conv": (100, 10, 3, 3), "embed": (1000, 100), "w": (100, 300)}
# smaller side² · (rows + columns), in 10⁹
SIZE = {"conv": 90 * 90 * 190e-9, "embed": 100 * 100 * 1100e-9, "w": 100 * 100 * 400e-9}
ONLY_W: dict[str, Any] = {"dense_patterns": ["emb*"]}
STEP = StepCard(
    name="turn", version=1, title="", summary="", source="", granularity="matrix", parameters={},
    work=(MatrixWork(seconds=7.0),),
)  # fmt: skip


def seconds(
    recipe: Recipe, card: MethodCard, beside: tuple[MethodCard | StepCard, ...] = (), known: tuple[str, ...] = ()
) -> float:
    return seconds_of_work(recipe, group_tensors(recipe, list(SHAPES)), SHAPES, (card, beside), known)


def of(parameters: dict[str, Any], n_models: int = 2, **changes: Any) -> Recipe:
    return recipe_of(n_models, parameters=parameters, **changes)


def working(**work: Any) -> MethodCard:
    return card_of(work=(MatrixWork(**work),))


def test_a_method_without_work_takes_no_time() -> None:
    assert seconds(of({}), card_of()) == 0.0


@pytest.mark.parametrize("n_models", [2, 5])
def test_parts_add_up_over_matrices_and_models(n_models: int) -> None:
    card = card_of(work=(MatrixWork(seconds=2.0), MatrixWork(seconds=3.0, each="model")))
    assert seconds(of({}, n_models), card) == pytest.approx((2 + n_models * 3) * (SIZE["embed"] + SIZE["w"]))


def test_what_a_method_takes_for_no_matrix_does_not_count() -> None:
    card = working(seconds=1.0)
    assert seconds(of(ONLY_W), card) == pytest.approx(SIZE["w"])
    assert seconds(of({**ONLY_W, "conv_as_matrix": True}), card) == pytest.approx(SIZE["w"] + SIZE["conv"])


@pytest.mark.parametrize(
    ("size", "products"),
    [
        ("decomposition", 100 * 100 * 400),
        ("product", 100 * 300 * 100),
        ("inputs", 100 * 300 * 300),
        ("input_square", 300 * 300 * 300),
    ],
)
def test_each_size_is_of_rows_and_columns(size: str, products: int) -> None:
    assert seconds(of(ONLY_W), working(seconds=5.0, of=size)) == pytest.approx(5e-9 * products)


def test_steps_count_where_they_are_taken() -> None:
    card = working(seconds=0.5, each="step", where={"solver": "adam"})
    for solver, expected in (("adam", 40 * 0.5 * SIZE["w"]), ("closed_form", 0.0)):
        assert seconds(of({**ONLY_W, "steps": 40, "solver": solver}), card) == pytest.approx(expected)


def test_adapters_whose_factors_are_known_cost_nothing() -> None:
    for takes_factors, names in ((True, ["embed"]), (False, ["embed", "w"])):
        card = working(seconds=1.0, takes_factors=takes_factors)
        assert seconds(of({}), card, known=("w",)) == pytest.approx(sum(SIZE[name] for name in names))


def test_what_stands_beside_the_method_counts_with_its_own_parameters() -> None:
    inside = card_of(name="inside", work=(MatrixWork(seconds=1.0, each="step"),))
    outer = card_of(name="outer", nested={"shared": "merge_set", "merge": "local"})
    shared = {"method": "inside", "parameters": {"steps": 3, "dense_patterns": ["w"]}}
    step = PinnedStep(name="turn", version=1, parameters=ONLY_W)
    recipe = of({"shared": shared, "merge": shared}, post_steps=[step])
    assert seconds(recipe, outer, (inside, STEP)) == pytest.approx(3 * SIZE["embed"] + 7 * SIZE["w"])


def test_a_plan_has_them_beside_its_bytes() -> None:
    manifest = manifest_of({"w": (2048, 2048)})
    reading, both = (
        make_plan(recipe_of(2), manifest, [manifest] * 2, card).estimated_seconds
        for card in (card_of(), working(seconds=4.0, each="model"))
    )
    assert both == pytest.approx(reading + 8e-9 * 2 * 2048**3 / CORES, abs=0.02)


def test_every_method_that_decomposes_says_what_it_takes() -> None:
    catalog = load_catalog()
    cards: list[MethodCard | StepCard] = [*catalog.methods, *catalog.post_steps]
    working = {card.name for card in cards if card.work}
    assert working == {
        "tsv_m", "tsv_c", "iso_c", "iso_cts", "dc_merge", "opcm", "peru_lora", "wudi", "doge_ta", "svc"
    }  # fmt: skip
