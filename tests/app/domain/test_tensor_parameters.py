"""Which parameters and weights hold for which tensors."""

from typing import Any

import pytest

from app.domain.errors import Invalid
from app.domain.recipes import Override
from app.domain.tensor_parameters import TensorGroup, group_tensors
from tests.app.domain.plan_inputs import recipe_of

NAMES = [*(f"layers.{index}.{part}" for index in range(3) for part in ("attention", "mlp")), "embed", "norm"]


def _groups(n_models: int = 2, **changes: Any) -> dict[str, TensorGroup]:
    recipe = recipe_of(n_models, **changes)
    return {name: group for group in group_tensors(recipe, NAMES) for name in group.names}


def test_without_overrides_all_tensors_are_one_group() -> None:
    (group,) = group_tensors(recipe_of(2), NAMES)
    assert group == TensorGroup(tuple(sorted(NAMES)), {"scaling_coefficient": 0.3}, (1.0, 1.0))


def test_an_override_holds_where_its_glob_matches() -> None:
    groups = _groups(overrides=(Override(match="*.mlp", parameters={"scaling_coefficient": 0.9}),))
    assert groups["layers.1.mlp"].parameters == {"scaling_coefficient": 0.9}
    assert groups["layers.1.attention"].parameters == {"scaling_coefficient": 0.3}


def test_the_later_of_two_overrides_wins_and_what_it_does_not_say_stays() -> None:
    groups = _groups(
        overrides=(
            Override(match="*.mlp", parameters={"scaling_coefficient": 0.9}, weights=(0.5, 2.0)),
            Override(match="layers.2.*", parameters={"scaling_coefficient": 0.1}),
        )
    )
    assert groups["layers.2.mlp"].parameters == {"scaling_coefficient": 0.1}
    assert groups["layers.2.mlp"].weights == (0.5, 2.0)
    assert groups["layers.2.attention"].weights == (1.0, 1.0)


def test_a_list_is_interpolated_over_the_depth() -> None:
    groups = _groups(parameters={"scaling_coefficient": [0.0, 1.0]})
    found = [
        groups[name].parameters["scaling_coefficient"] for name in ("embed", "layers.0.mlp", "layers.1.mlp", "norm")
    ]
    assert found == [0.0, 0.0, 0.5, 1.0]


def test_weights_are_interpolated_too() -> None:
    groups = _groups(overrides=(Override(match="*", weights=((0.0, 1.0), 2.0)),))
    assert groups["layers.1.mlp"].weights == (0.5, 2.0)


def test_tensors_alike_share_a_group_whichever_way_they_came_to_it() -> None:
    recipe = recipe_of(2, overrides=(Override(match="layers.0.*", parameters={"scaling_coefficient": 0.3}),))
    assert len(group_tensors(recipe, NAMES)) == 1


def test_lists_of_words_are_left_alone() -> None:
    (group,) = group_tensors(recipe_of(2, parameters={"patterns": ["a", "b"]}), NAMES)
    assert group.parameters == {"patterns": ["a", "b"]}


def test_a_glob_that_matches_nothing_is_refused() -> None:
    with pytest.raises(Invalid, match=r"/overrides/0/match: '\*\.lora' matches none of the 8 merged tensors") as caught:
        _groups(overrides=(Override(match="*.lora"),))
    assert caught.value.errors[0].pointer == "/overrides/0/match"


def test_a_gradient_without_blocks_is_refused() -> None:
    with pytest.raises(Invalid, match="no tensor's name numbers the model's blocks"):
        group_tensors(recipe_of(1, parameters={"scaling_coefficient": [0.0, 1.0]}), ["weight", "bias"])


NESTED = {
    "tolerance": 0.5,
    "merge": {"method": "ties", "version": 1, "parameters": {"density": 0.2, "vote": "weighted"}},
}


def _inside(group: TensorGroup) -> Any:
    assert isinstance(group.parameters["merge"], dict)
    return group.parameters["merge"]["parameters"]


def test_an_override_changes_parameters_of_a_method_inside_and_leaves_its_others() -> None:
    groups = _groups(
        parameters=NESTED,
        overrides=(Override(match="*.mlp", parameters={"merge": {"parameters": {"density": 0.9}}}),),
    )
    assert groups["layers.1.mlp"].parameters["tolerance"] == 0.5
    assert groups["layers.1.mlp"].parameters["merge"] == {
        "method": "ties", "version": 1, "parameters": {"density": 0.9, "vote": "weighted"},
    }  # fmt: skip
    assert _inside(groups["layers.1.attention"]) == NESTED["merge"]["parameters"]  # type: ignore[index]


def test_a_list_inside_a_method_inside_is_interpolated_over_the_depth() -> None:
    merge = {"method": "ties", "parameters": {"density": [0.2, 0.6]}}
    groups = _groups(parameters={"merge": merge})
    found = [_inside(groups[name])["density"] for name in ("embed", "layers.0.mlp", "layers.1.mlp", "norm")]
    assert found == pytest.approx([0.2, 0.2, 0.4, 0.6])
    with pytest.raises(Invalid, match="no tensor's name numbers the model's blocks"):
        group_tensors(recipe_of(1, parameters={"merge": merge}), ["weight", "bias"])
