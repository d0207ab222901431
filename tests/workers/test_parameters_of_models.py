"""Models with parameters of their own: each is pruned by its own, then all are merged as if nothing were to prune."""

from typing import Any

import pytest
import torch

from app.domain.catalog import load_catalog
from tests.workers.memory import MemoryMerge
from tests.workers.models import draw_integers
from workers.catalog import load_method

Values = dict[str, Any]
KEYS = ("a", "b", "c")
NO_RESCALE: Values = {"rescale": "none"}
# method, parameters of the merge, what keeps everything, each model's own
METHODS: list[tuple[str, Values, Values, list[Values]]] = [
    ("ties", {"trim_scope": "tensor"}, {"density": 1.0}, [{"density": 0.3}, {}, {"density": 0.9}]),
    ("ties", {"vote": "weighted"}, {"density": 1.0}, [{"density": 0.3}, {"density": 0.3}, {"density": 0.6}]),
    (
        "breadcrumbs",
        {"density": 0.5, "scaling_coefficient": 1.0},
        {"density": 1.0, "outlier_fraction": 0.0},
        [{"outlier_fraction": 0.2}, {"density": 0.2}, {"density": 0.6, "outlier_fraction": 0.0}],
    ),
    ("breadcrumbs", {"scope": "global", "scaling_coefficient": 1.0}, {"density": 1.0, "outlier_fraction": 0.0},
     [{"density": 0.4}, {}, {"density": 0.1}]),
    ("breadcrumbs", {"scope": "row", "scaling_coefficient": 1.0}, {"density": 1.0, "outlier_fraction": 0.0},
     [{"density": 0.4}, {}, {"density": 0.7}]),
    ("dare_linear", NO_RESCALE, {"density": 1.0}, [{"density": 0.3}, {}, {"density": 0.9}]),
    ("dare_ties", NO_RESCALE, {"density": 1.0}, [{"density": 0.3}, {}, {"density": 0.9}]),
    ("della", NO_RESCALE, {"density": 1.0, "density_spread": 0.0}, [{"density": 0.3}, {"density_spread": 0.2}, {}]),
    ("della_linear", NO_RESCALE, {"density": 1.0, "density_spread": 0.0}, [{}, {"density": 0.3}, {"density": 0.9}]),
]  # fmt: skip


@pytest.mark.parametrize(("method", "parameters", "everything", "own"), METHODS)
def test_each_model_is_pruned_by_its_own(
    method: str, parameters: Values, everything: Values, own: list[Values]
) -> None:
    base, models = draw_integers(7, 3)
    weights = [1.0, -0.5, 2.0]
    loaded = load_method(method)

    pruned = [
        MemoryMerge(loaded, {**parameters, **values}, model_keys=(key,))(base, [model])
        for model, values, key in zip(models, own, KEYS, strict=True)
    ]
    expected = MemoryMerge(loaded, {**parameters, **everything}, weights, model_keys=KEYS)(base, pruned)
    found = MemoryMerge(loaded, parameters, weights, model_keys=KEYS, of_models=own)(base, models)

    assert all(torch.equal(found[name], expected[name]) for name in base)


def test_every_method_with_parameters_of_models_is_here() -> None:
    pruning = {card.name for card in load_catalog().methods if set(card.per_model) - {"mask_threshold"}}
    assert {case[0] for case in METHODS} == pruning  # thresholds of masks: the methods' own tests
