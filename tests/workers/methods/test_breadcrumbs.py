"""Breadcrumbs: golden numbers, a brute-force reference, exact counts, and tensors too small for a band."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workers.memory import MemoryMerge
from tests.workers.methods.golden import TASK_VECTORS, merge_example
from tests.workers.models import assert_close, draw_integers, to_arrays
from tests.workers.references.breadcrumbs import merge as breadcrumbs_by_hand
from workers.catalog import load_method
from workers.methods import breadcrumbs

ALL = {"density": 1.0, "outlier_fraction": 0.0}


def test_middle_half_of_the_example() -> None:
    # the largest of six is dropped, the next three are kept: τ1 -1, .5, 2; τ2 1, -.5, -1.5; τ3 .75, 1, .625
    merged = merge_example("breadcrumbs", {"density": 0.5, "outlier_fraction": 1 / 6, "scaling_coefficient": 0.5})
    assert merged == [0.5, -0.5, 0.375, 0.0, 0.75, 0.3125]


def test_keeping_all_is_task_arithmetic() -> None:
    assert merge_example("breadcrumbs", {**ALL, "scaling_coefficient": 0.3}) == merge_example("task_arithmetic", {})


def test_only_outliers_dropped() -> None:
    parameters = {"outlier_fraction": 1 / 6, "mask_mode": "drop_outliers", "scaling_coefficient": 1.0}
    merged = merge_example("breadcrumbs", parameters, task_vectors=TASK_VECTORS[:1])
    assert merged == [0.0, -1.0, 0.5, 0.0, 2.0, -0.25]


def test_only_largest_kept() -> None:
    parameters = {"density": 0.5, "outlier_fraction": 1 / 6, "mask_mode": "keep_largest", "scaling_coefficient": 1.0}
    merged = merge_example("breadcrumbs", parameters, task_vectors=TASK_VECTORS[:1])
    assert merged == [3.0, -1.0, 0.0, 0.0, 2.0, 0.0]


def test_elected_signs_sum_what_agrees() -> None:
    # all kept; sums 2, 1.5, .75, 0 (balanced: +), 1.5, .25; what agrees: 4, 2.5, 1.25, .5, 3, .625
    parameters = {**ALL, "scaling_coefficient": 1.0, "elect_signs": True}
    assert merge_example("breadcrumbs", parameters) == [4.0, 2.5, 1.25, 0.5, 3.0, 0.625]


def test_weights_scale_each_task_vector_after_its_mask() -> None:
    parameters = {"density": 0.5, "outlier_fraction": 1 / 6, "scaling_coefficient": 0.5}
    # first entry: only τ2 keeps it, 0.5 · (-2) · 1
    assert merge_example("breadcrumbs", parameters, [1.0, -2.0, 1.0])[0] == -1.0


def test_scaling_zero_returns_base() -> None:
    assert merge_example("breadcrumbs", {"scaling_coefficient": 0.0}) == [0.0] * 6


def test_equal_magnitudes_are_ranked_from_the_front() -> None:
    vectors = torch.tensor([[1.0, -1.0, 1.0, 1.0, -1.0, 1.0]])
    parameters = {"density": 0.5, "outlier_fraction": 1 / 6, "scaling_coefficient": 1.0}
    assert merge_example("breadcrumbs", parameters, task_vectors=vectors) == [0.0, -1.0, 1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("shape", [(), (1,), (3,)])
def test_a_tensor_too_small_for_a_band_is_kept_whole(shape: tuple[int, ...]) -> None:
    # density 0.15 of 1 or 3 entries is less than one entry
    model = {"w": torch.full(shape, 2.0)}
    merged = MemoryMerge(load_method("breadcrumbs"), {"scaling_coefficient": 1.0})({"w": torch.zeros(shape)}, [model])
    assert torch.equal(merged["w"], model["w"])


@pytest.mark.parametrize("scope", ["tensor", "global"])
def test_exactly_the_asked_number_is_kept_and_nothing_above_the_outliers(scope: str) -> None:
    model = {"w": torch.randn(20, 50, generator=torch.Generator().manual_seed(3))}
    parameters = {"density": 0.15, "outlier_fraction": 0.01, "scope": scope, "scaling_coefficient": 1.0}
    merged = MemoryMerge(load_method("breadcrumbs"), parameters)({"w": torch.zeros(20, 50)}, [model])["w"]
    largest = model["w"].abs().flatten().sort(descending=True).values
    assert int(merged.count_nonzero()) == 150
    assert float(merged.abs().max()) == float(largest[10])  # ranks 0 to 9 are dropped


def test_row_scope_keeps_the_same_number_in_every_row() -> None:
    model = {"w": torch.randn(20, 50, generator=torch.Generator().manual_seed(3))}
    parameters = {"density": 0.1, "outlier_fraction": 0.02, "scope": "row", "scaling_coefficient": 1.0}
    merged = MemoryMerge(load_method("breadcrumbs"), parameters)({"w": torch.zeros(20, 50)}, [model])["w"]
    assert merged.count_nonzero(dim=1).tolist() == [5] * 20


def test_adding_a_task_later_equals_merging_all_at_once() -> None:
    parameters = {"density": 0.5, "outlier_fraction": 1 / 6, "scaling_coefficient": 0.5}
    together = merge_example("breadcrumbs", parameters)
    first = merge_example("breadcrumbs", parameters, task_vectors=TASK_VECTORS[:2])
    added = merge_example("breadcrumbs", parameters, task_vectors=TASK_VECTORS[2:])
    assert [round(a + b, 6) for a, b in zip(first, added, strict=True)] == together


def test_random_mask_keeps_about_the_density_and_is_the_same_for_the_same_seed() -> None:
    base, model = {"w": torch.zeros(100, 100)}, {"w": torch.ones(100, 100)}
    parameters = {"density": 0.3, "mask_mode": "random", "scaling_coefficient": 1.0}
    first, again, other = (
        MemoryMerge(load_method("breadcrumbs"), parameters, seed=seed)(base, [model])["w"] for seed in (1, 1, 2)
    )
    assert abs(float(first.mean()) - 0.3) < 0.02  # four standard deviations of 10,000 draws
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_random_mask_belongs_to_a_model_not_to_its_place() -> None:
    base, models = {"w": torch.zeros(10, 10)}, [{"w": torch.ones(10, 10)}, {"w": torch.full((10, 10), 2.0)}]
    method, parameters = load_method("breadcrumbs"), {"density": 0.5, "mask_mode": "random"}
    forward = MemoryMerge(method, parameters, model_keys=("a", "b"))(base, models)
    backward = MemoryMerge(method, parameters, model_keys=("b", "a"))(base, models[::-1])
    assert torch.equal(forward["w"], backward["w"])


def test_passes_over_the_inputs_are_those_of_the_card() -> None:
    method = load_method("breadcrumbs")
    passes = [
        sum(request.n_passes for request in method.collect(breadcrumbs.BreadcrumbsParameters(scope=scope)))
        for scope in ("tensor", "row", "global")
    ]
    assert max(passes) == method.card.statistic_passes
    assert passes[1] == 0


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    weights=st.lists(st.sampled_from([0.5, 1.0, 2.0, -1.0, 0.0]), min_size=1, max_size=4),
    density=st.sampled_from([0.05, 0.15, 0.5, 1.0]),
    outlier_fraction=st.sampled_from([0.0, 0.01, 0.1, 0.5]),
    scope=st.sampled_from(["tensor", "row", "global"]),
    mask_mode=st.sampled_from(["band", "drop_outliers", "keep_largest"]),
    elect_signs=st.booleans(),
    piece_elements=st.sampled_from([1, 5, 1 << 20]),
)
def test_agrees_with_the_algorithm_worked_entry_by_entry(  # noqa: PLR0913 - one argument a parameter
    seed: int,
    weights: list[float],
    density: float,
    outlier_fraction: float,
    scope: str,
    mask_mode: str,
    elect_signs: bool,  # noqa: FBT001
    piece_elements: int,
) -> None:
    parameters = {
        "density": density, "outlier_fraction": outlier_fraction, "scaling_coefficient": 0.5, "scope": scope,
        "mask_mode": mask_mode, "elect_signs": elect_signs,
    }  # fmt: skip
    base, models = draw_integers(seed, len(weights))
    merged = MemoryMerge(load_method("breadcrumbs"), parameters, weights, piece_elements=piece_elements)(base, models)
    by_hand = breadcrumbs_by_hand(to_arrays(base), [to_arrays(model) for model in models], weights, parameters)
    assert_close(merged, by_hand)
