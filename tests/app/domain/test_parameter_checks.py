"""Parameters against their schema: gradients, nested methods, overrides, steps."""

from typing import Annotated, Any

import pytest
from pydantic import Field

from app.domain.catalog import Catalog, MethodCard, Preset, StepCard, load_catalog
from app.domain.errors import Invalid, InvalidParameters
from app.domain.parameter_checks import fill_defaults, parameter_faults, with_gradients
from app.domain.parameters import Density, NestedMethod, Parameters, ScalingCoefficient, schema_of
from app.domain.recipes import PinnedStep
from tests.app.domain.plan_inputs import card_of, recipe_of


class SumParameters(Parameters):
    """A plain method's."""

    scaling_coefficient: ScalingCoefficient = 0.3


class OuterParameters(Parameters):
    """A method's that takes another method."""

    density: Density = 0.1
    share: Annotated[float | None, Field(gt=0, le=1)] = None
    steps: Annotated[int, Field(ge=1)] = 3
    shared: NestedMethod = NestedMethod(method="sum")


SUM = card_of(name="sum", aliases=("plus",), parameters=schema_of(SumParameters), version=4)
OUTER = card_of(name="outer", parameters=schema_of(OuterParameters), nested={"shared": "merge_set"})
LOCAL = card_of(name="local", parameters=schema_of(OuterParameters), nested={"shared": "local"})
PATCHING = card_of(name="patching", parameters=schema_of(SumParameters), produces="multitask")


class LearningParameters(Parameters):
    """A learning method's, which takes what it learned."""

    coefficients: tuple[float, ...] | None = None


LEARNING = card_of(
    name="learning",
    aliases=("behind",),
    parameters=schema_of(LearningParameters),
    data="unlabelled",
    learned="coefficients",
    presets={"behind": Preset(transforms=("turn",))},
)
MEASURING = card_of(name="measuring", parameters=schema_of(SumParameters), data="gram")
STEP = StepCard(
    name="turn", version=2, title="", summary="", source="", granularity="row", parameters=schema_of(SumParameters)
)
CATALOG = Catalog(methods=(LEARNING, LOCAL, MEASURING, OUTER, PATCHING, SUM), evaluators=(), transforms=(STEP,))


def _check(parameters: dict[str, Any], method: str = "outer") -> tuple[MethodCard, dict[str, Any]]:
    return CATALOG.check(method, parameters, has_base_model=True, weights=[1.0, 1.0])


def test_a_schema_holds_what_it_refers_to() -> None:
    shared = OUTER.parameters["properties"]["shared"]
    assert "$defs" not in OUTER.parameters
    assert shared["properties"]["method"]["type"] == "string"
    assert shared["default"]["method"] == "sum"


def test_a_number_may_be_a_list_over_the_depth() -> None:
    _, effective = _check({"density": [1, 0.5]})
    assert effective["density"] == [1.0, 0.5]


def test_a_number_or_null_may_be_a_list_too() -> None:
    assert _check({"share": [1, 0.5]})[1]["share"] == [1.0, 0.5]
    assert _check({"share": None})[1]["share"] is None
    schema = with_gradients(OUTER.parameters)["properties"]["share"]
    number = {"type": "number", "exclusiveMinimum": 0, "maximum": 1}
    gradient = {"type": "array", "items": number, "minItems": 2, "maxItems": 1000}
    assert schema["anyOf"] == [number, {"type": "null"}, gradient]


def test_null_is_no_step_of_a_gradient() -> None:
    (fault,) = parameter_faults(OUTER.parameters, {"share": [0.5, None]}, pointer="/parameters")
    assert (fault.pointer, fault.message) == (
        "/parameters/share/1",
        "None is not of type 'number'; expected a number > 0 and <= 1",
    )


@pytest.mark.parametrize(
    ("value", "pointer", "words"),
    [
        ([0.5], "/parameters/density", "found a list of 1; expected a number, or 2 to 1000"),
        ([], "/parameters/density", "found a list of 0"),
        ([0.5, 0.0], "/parameters/density/1", "expected a number > 0"),
        ([0.5, "a"], "/parameters/density/1", "is not of type 'number'"),
        ([[0.1, 0.2], 0.3], "/parameters/density/0", "is not of type 'number'"),
    ],
)
def test_faults_of_a_gradient_are_named(value: Any, pointer: str, words: str) -> None:
    (fault,) = parameter_faults(OUTER.parameters, {"density": value}, pointer="/parameters")
    assert fault.pointer == pointer
    assert words in fault.message


def test_a_whole_number_has_no_gradient() -> None:
    with pytest.raises(InvalidParameters, match="is not of type 'integer'"):
        _check({"steps": [1, 2]})


def test_a_nested_method_gets_its_version_and_defaults() -> None:
    _, effective = _check({"shared": {"method": "plus"}})
    assert effective["shared"] == {"method": "sum", "version": 4, "parameters": {"scaling_coefficient": 0.3}}


def test_the_default_of_a_nested_method_is_filled_in_too() -> None:
    assert _check({})[1] == _check({"shared": {"method": "sum"}})[1]


@pytest.mark.parametrize(
    ("shared", "words", "pointer"),
    [
        ({"method": "summ"}, "no merge method 'summ'", "/parameters/shared/method"),
        ({"method": "sum", "parameters": {"scale": 1.0}}, "unknown parameter", "/parameters/shared/parameters/scale"),
        ({"method": "outer"}, "has a method inside itself", "/parameters/shared/method"),
        ({"method": "patching"}, "gives a multitask artifact", "/parameters/shared/method"),
        ({"method": "sum", "version": 3}, "version 3 of sum, this service has version 4", "/parameters/shared/method"),
        ({"parameters": {}}, "'method' is a required property", "/parameters/shared"),
        ("sum", "is not of type 'object'", "/parameters/shared"),
    ],
)
def test_faults_of_a_nested_method_are_named_where_they_are(shared: Any, words: str, pointer: str) -> None:
    with pytest.raises(Invalid, match=words) as caught:
        _check({"shared": shared})
    assert caught.value.errors[0].pointer == pointer


@pytest.mark.parametrize(
    ("outer", "inside", "ways"),
    [
        ("outer", "learning", ("give it `coefficients`", "does not learn", "base_model of post_pruning")),
        ("outer", "measuring", ("inside outer it sees only weights; name a method", "merge by measuring first")),
        ("local", "learning", ("inside local it sees only weights; give it `coefficients`",)),
        ("local", "measuring", ("measuring learns from data",)),
    ],
)
def test_a_method_that_would_learn_inside_another_one_is_refused(
    outer: str, inside: str, ways: tuple[str, ...]
) -> None:
    with pytest.raises(InvalidParameters) as caught:
        _check({"shared": {"method": inside}}, outer)
    (problem,) = caught.value.errors
    assert problem.pointer == "/parameters/shared/method"
    assert all(way in problem.message for way in ways)
    assert ("post_pruning" in problem.message) == (outer == "outer")  # over a merge of what `local` sees is nothing


def test_a_method_that_is_given_what_it_learned_may_stand_inside() -> None:
    inside = {"method": "learning", "parameters": {"coefficients": [0.3, 0.4]}}
    assert _check({"shared": inside})[1]["shared"]["parameters"] == {"coefficients": [0.3, 0.4]}


def test_a_name_that_brings_a_transform_is_refused_inside() -> None:
    with pytest.raises(InvalidParameters, match="behind is learning behind the transform turn"):
        _check({"shared": {"method": "behind", "parameters": {"coefficients": [0.3, 0.4]}}})


def test_an_override_takes_some_parameters_and_no_defaults() -> None:
    assert CATALOG.check_override(
        OUTER, {"density": 1}, n_models=2, pointer="/overrides/0/parameters", elsewhere={}
    ) == {"density": 1.0}


ELSEWHERE: dict[str, Any] = {"shared": {"method": "sum", "version": 4, "parameters": {"scaling_coefficient": 0.3}}}


def test_an_override_takes_parameters_of_the_method_inside() -> None:
    own: dict[str, Any] = {"shared": {"parameters": {"scaling_coefficient": [1, 2]}}, "density": 1}
    found = CATALOG.check_override(OUTER, own, n_models=2, pointer="/overrides/0/parameters", elsewhere=ELSEWHERE)
    assert found == {"density": 1.0, "shared": {"parameters": {"scaling_coefficient": [1.0, 2.0]}}}


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"densty": 0.1}, "unknown parameter 'densty'"),
        ({"density": 2.0}, "expected a number"),
        ({"shared": {"method": "sum"}}, "shared is a method; it cannot differ between tensors, but its parameters can"),
        ({"shared": {"method": "sum", "parameters": {}}}, "give those alone, as"),
        ({"shared": 3}, "shared is a method"),
        ({"shared": {"parameters": {"scale": 1}}}, "unknown parameter 'scale'"),
    ],
)
def test_faults_of_an_override_are_named(parameters: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidParameters, match=words) as caught:
        CATALOG.check_override(OUTER, parameters, n_models=2, pointer="/overrides/0/parameters", elsewhere=ELSEWHERE)
    assert caught.value.errors[0].pointer.startswith("/overrides/0/parameters/")


def test_an_override_counts_no_more_models_than_there_are() -> None:
    catalog = load_catalog()
    pointer = "/overrides/0/parameters"
    card = catalog.method("consensus_ta")
    assert catalog.check_override(card, {"min_tasks": 2}, n_models=2, pointer=pointer, elsewhere={}) == {"min_tasks": 2}
    with pytest.raises(InvalidParameters, match="min_tasks is 3, but 2 models are merged") as caught:
        catalog.check_override(card, {"min_tasks": 3}, n_models=2, pointer=pointer, elsewhere={})
    assert caught.value.errors[0].pointer == f"{pointer}/min_tasks"


def test_a_step_gets_its_defaults() -> None:
    card, effective = CATALOG.check_step("transforms", "turn", {}, pointer="/transforms/0")
    assert (card.version, effective) == (2, {"scaling_coefficient": 0.3})


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [("transforms", "tern", "no transform 'tern'. Did you mean 'turn'"), ("post_steps", "turn", "no post-step 'turn'")],
)
def test_an_unknown_step_is_refused(kind: Any, name: str, words: str) -> None:
    with pytest.raises(Invalid, match=words) as caught:
        CATALOG.check_step(kind, name, {}, pointer=f"/{kind}/0")
    assert caught.value.errors[0].pointer == f"/{kind}/0/name"


@pytest.mark.parametrize(
    ("kind", "name", "parameter"), [("post_steps", "lines", "slope"), ("transforms", "awd", "norm_penalty")]
)
def test_a_step_takes_no_numbers_over_depth(kind: Any, name: str, parameter: str) -> None:
    with pytest.raises(InvalidParameters, match="is not of type 'number'") as caught:
        load_catalog().check_step(kind, name, {parameter: [0.1, 0.2]}, pointer=f"/{kind}/0")
    assert caught.value.errors[0].pointer == f"/{kind}/0/parameters/{parameter}"


def test_the_cards_beside_a_method_are_those_that_see_the_merge_set() -> None:
    recipe = recipe_of(
        2, method="outer", parameters=_check({})[1], transforms=(PinnedStep(name="turn", version=2, parameters={}),)
    )
    assert CATALOG.cards_beside(recipe) == (SUM, STEP)


def test_defaults_are_filled_in_by_name() -> None:
    assert list(fill_defaults(OUTER.parameters, {"steps": 5.0})) == ["density", "share", "shared", "steps"]
