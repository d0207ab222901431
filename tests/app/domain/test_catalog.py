"""A recipe is checked against the cards: all faults at once, near matches, defaults filled in."""

import pytest

from app.domain.catalog import Catalog, MethodCard
from app.domain.checkpoints import digest_json
from app.domain.errors import EvaluatorNotFound, Invalid, InvalidParameters, MethodNotFound, UnknownMethod

SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "density": {"type": "number", "exclusiveMinimum": 0, "maximum": 1, "default": 0.2},
        "reduce": {"enum": ["mean", "sum"], "default": "mean"},
    },
}


def card(**changes: object) -> MethodCard:
    fields: dict[str, object] = {
        "name": "ties",
        "version": 1,
        "title": "TIES-merging",
        "summary": "Trim, elect, merge.",
        "source": "arXiv:2306.01708",
        "aliases": ("ties_merging",),
        "base_model": "required",
        "min_models": 1,
        "weights": "any",
        "granularity": "element",
        "parameters": SCHEMA,
    }
    return MethodCard.model_validate(fields | changes)


CATALOG = Catalog(
    methods=(
        card(),
        card(name="slerp", aliases=(), base_model="optional", min_models=2, max_models=2, weights="unused"),
    ),
    evaluators=(),
)


def test_defaults_are_filled_in() -> None:
    found, parameters = CATALOG.check("ties", {"density": 0.5}, has_base_model=True, weights=[1.0])
    assert found.name == "ties"
    assert parameters == {"density": 0.5, "reduce": "mean"}


def test_a_default_may_be_another_one_for_a_single_model() -> None:
    rule = {"type": "number", "default": 0.3, "x-default-for-one-model": 1.0}
    catalog = Catalog(methods=(card(parameters={"properties": {"scaling": rule}}),), evaluators=())
    _, one = catalog.check("ties", {}, has_base_model=True, weights=[-1.0])
    _, several = catalog.check("ties", {}, has_base_model=True, weights=[1.0, 1.0])
    _, given = catalog.check("ties", {"scaling": 0.5}, has_base_model=True, weights=[1.0])
    assert (one, several, given) == ({"scaling": 1.0}, {"scaling": 0.3}, {"scaling": 0.5})


def test_weights_to_divide_by_must_not_sum_to_zero() -> None:
    rule = {"type": "boolean", "default": True}
    catalog = Catalog(methods=(card(parameters={"properties": {"normalize": rule}}),), evaluators=())
    with pytest.raises(
        Invalid, match=r"divides by the sum of the weights, which is 0.*set /parameters/normalize"
    ) as caught:
        catalog.check("ties", {}, has_base_model=True, weights=[1.0, -1.0])
    assert [fault.pointer for fault in caught.value.errors] == ["/models"]
    catalog.check("ties", {"normalize": False}, has_base_model=True, weights=[1.0, -1.0])
    catalog.check("ties", {}, has_base_model=True, weights=[1.0, -0.5])


def test_an_alias_names_the_method() -> None:
    found, _ = CATALOG.check("ties_merging", {}, has_base_model=True, weights=[1.0])
    assert found.name == "ties"


def test_an_unknown_method_gives_the_nearest_name() -> None:
    with pytest.raises(UnknownMethod) as caught:
        CATALOG.check("tiez", {}, has_base_model=True, weights=[1.0])
    assert caught.value.errors[0].did_you_mean == "ties"
    with pytest.raises(MethodNotFound, match=r"Did you mean 'ties_merging' or 'ties'\? GET /v1/methods lists all 2"):
        CATALOG.method("ties_merg")
    with pytest.raises(MethodNotFound) as found:
        CATALOG.method("x" * 1000)
    assert len(found.value.detail) < 200
    with pytest.raises(EvaluatorNotFound, match="Known: none"):
        CATALOG.evaluator("text-classification")


def test_all_parameter_faults_are_named_at_once() -> None:
    with pytest.raises(InvalidParameters) as caught:
        CATALOG.check("ties", {"densty": 0.3, "density": 0, "reduce": "avg"}, has_base_model=True, weights=[1.0])
    faults = {fault.pointer: fault for fault in caught.value.errors}
    assert set(faults) == {"/parameters/densty", "/parameters/density", "/parameters/reduce"}
    assert faults["/parameters/densty"].did_you_mean == "density"
    assert "> 0 and <= 1" in faults["/parameters/density"].message


def test_a_missing_base_model_and_a_wrong_number_of_models_are_refused() -> None:
    with pytest.raises(Invalid) as caught:
        CATALOG.check("ties", {}, has_base_model=False, weights=[])
    assert [fault.pointer for fault in caught.value.errors] == ["/base_model", "/models"]
    with pytest.raises(Invalid, match="exactly 2 models, found 3"):
        CATALOG.check("slerp", {}, has_base_model=False, weights=[1.0, 1.0, 1.0])


def test_more_than_256_models_are_refused() -> None:
    with pytest.raises(Invalid, match="1 to 256 models, found 257"):
        CATALOG.check("ties", {}, has_base_model=True, weights=[1.0] * 257)


def test_a_weight_that_the_method_cannot_use_is_refused() -> None:
    with pytest.raises(Invalid, match="uses no weights"):
        CATALOG.check("slerp", {}, has_base_model=False, weights=[1.0, 0.5])


def test_parameters_per_model_are_refused_with_the_place() -> None:
    with pytest.raises(Invalid) as caught:
        CATALOG.check("ties", {}, has_base_model=True, weights=[1.0], model_parameters=[{"density": 0.1}])
    assert caught.value.errors[0].pointer == "/models/0/parameters/density"


def test_a_model_has_its_own_parameters_where_the_card_says_so() -> None:
    catalog = Catalog(methods=(card(per_model=("density",)),), evaluators=())
    weights = [1.0, 1.0]
    _, effective = catalog.check(
        "ties", {}, has_base_model=True, weights=weights, model_parameters=[{"density": 0.1}, {}]
    )
    assert effective["density"] == 0.2
    with pytest.raises(Invalid, match="takes only density per model") as caught:
        own = [{"reduce": "sum"}, {"density": 2.0}]
        catalog.check("ties", {}, has_base_model=True, weights=weights, model_parameters=own)
    assert [fault.pointer for fault in caught.value.errors] == [
        "/models/0/parameters/reduce",
        "/models/1/parameters/density",
    ]


def test_equal_numbers_have_one_form() -> None:
    _, as_integer = CATALOG.check("ties", {"density": 1}, has_base_model=True, weights=[1.0])
    _, as_float = CATALOG.check("ties", {"density": 1.0}, has_base_model=True, weights=[1.0])
    assert digest_json(as_integer) == digest_json(as_float)


def test_an_integer_of_many_digits_is_out_of_range() -> None:
    with pytest.raises(InvalidParameters) as caught:
        CATALOG.check("ties", {"density": 10**400}, has_base_model=True, weights=[1.0])
    assert [fault.pointer for fault in caught.value.errors] == ["/parameters/density"]
    assert "out of range" in caught.value.errors[0].message
