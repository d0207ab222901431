"""PCB-Merging: numbers worked by hand, who has no say, both variants, ranks over the whole model, a reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.workers.memory import MemoryMerge, MemorySource
from tests.workers.methods.golden import merge_example
from tests.workers.models import assert_close, draw_integers, draw_normal, to_arrays
from tests.workers.references.pcb import merge as by_hand
from workers.catalog import load_method
from workers.methods.pcb import PcbParameters, collect
from workers.numerics.competition import Bounds, rescale, to_magnitudes, to_score
from workers.statistics.competition import CompetitionBounds

METHOD = "pcb"
ALL = {"density": 1.0, "clip_fraction": 0.0}
# magnitudes are 0 or 4, N is 0 or 1. Scores, but for e² and tanh 1: 2, 0, 0, 0, 0, 0 and 2, 0, 1, 0, 0, 0.
# Shares at density 1: 1, 0, 0, 0, 0, 0 and 1, 0, 1/2, 0, 0, 0.
PAIR = torch.tensor([[4.0, 4.0, 0.0, 0.0, 0.0, 0.0], [4.0, -4.0, 4.0, 0.0, 0.0, 0.0]])


def test_entries_are_averaged_by_share() -> None:
    assert merge_example(METHOD, ALL, task_vectors=PAIR) == [4.0, 0.0, 4.0, 0.0, 0.0, 0.0]


def test_weights_and_the_coefficient_stand_in_the_numerator_alone() -> None:
    # first entry (1·4 + 3·4) / 2; third 3 · ½·4 / ½
    assert merge_example(METHOD, ALL, [1.0, 3.0], PAIR) == [8.0, 0.0, 12.0, 0.0, 0.0, 0.0]
    assert merge_example(METHOD, ALL | {"scaling_coefficient": 0.5}, [1.0, 3.0], PAIR)[:3] == [4.0, 0.0, 6.0]


def test_the_share_is_the_score_above_the_last_one_kept() -> None:
    # of a single model the score grows with the magnitude; of 3 kept, the last has a share of 0
    vector = torch.tensor([[3.0, -1.0, 0.5, 0.0, 2.0, -0.25]])
    assert merge_example(METHOD, {"density": 0.5}, task_vectors=vector) == [3.0, 0.0, 0.0, 0.0, 2.0, 0.0]


def test_what_is_merged_is_clipped() -> None:
    # one of six is clipped at either end: magnitudes from 0.25 to 2. The clipped ones share the largest score.
    vector = torch.tensor([[3.0, -1.0, 0.5, 0.0, 2.0, -0.25]])
    merged = merge_example(METHOD, {"density": 1.0, "clip_fraction": 0.2}, task_vectors=vector)
    assert merged == [2.0, -1.0, 0.5, 0.0, 2.0, 0.0]


def test_products_of_small_entries_are_nearly_linear_in_the_script_variant() -> None:
    # the first model's scores e^(2N² - 2) · tanh(τ · Σ): tanh(4e-4 · 6e-4), then e^-1.5 · tanh(-2e-4 · 2e-4)
    vectors = 1e-4 * torch.tensor([[4.0, -2.0, 0.0, 0.0, 0.0, 0.0], [2.0, 4.0, 0.0, 0.0, 0.0, 0.0]])
    merge = MemoryMerge(load_method(METHOD), {**ALL, "variant": "script"})
    merged = merge({"w": torch.zeros(6)}, [{"w": vector} for vector in vectors])["w"].double()
    scores = torch.tensor([[24.0, -4.0 * 2.718281828**-1.5, 0.0], [12.0 * 2.718281828**-1.5, 8.0, 0.0]]).double()
    low, high = scores.amin(1, keepdim=True), scores.amax(1, keepdim=True)
    shares = (scores - low) / (high - low)
    expected = (shares * vectors[:, :3].double()).sum(0) / shares.sum(0)
    torch.testing.assert_close(merged[:3], expected, rtol=1e-5, atol=1e-12)


def test_a_density_of_next_to_nothing_gives_the_base() -> None:
    assert merge_example(METHOD, {"density": 0.01}) == [0.0] * 6


@pytest.mark.parametrize("vector", [torch.zeros(1, 6), torch.full((1, 6), -2.0)])
def test_task_vectors_whose_magnitudes_are_all_one_have_no_say(vector: Tensor) -> None:
    assert merge_example(METHOD, ALL, task_vectors=vector) == [0.0] * 6
    assert merge_example(METHOD, ALL, task_vectors=torch.cat((PAIR, vector)))[3:] == [0.0] * 3


@pytest.mark.parametrize("shape", [(), (1,), (0, 3)])
def test_a_model_of_at_most_one_entry_stays_the_base(shape: tuple[int, ...]) -> None:
    base = {"w": torch.ones(shape)}
    assert torch.equal(MemoryMerge(load_method(METHOD))(base, [{"w": torch.full(shape, 3.0)}])["w"], base["w"])


def test_more_models_than_float32_can_exponentiate_are_no_trouble() -> None:
    merged = merge_example(METHOD, ALL, task_vectors=PAIR[:1].repeat(200, 1))
    assert merged == [4.0, 4.0, 0.0, 0.0, 0.0, 0.0]


def test_ranks_count_over_the_whole_model_and_are_found_in_models_too_large_to_hold() -> None:
    generator = torch.Generator().manual_seed(0)
    models = [{"a": torch.randn(300, 900, generator=generator), "b": torch.randn(7, generator=generator)}]
    models += [{name: tensor + torch.randn(tensor.shape, generator=generator) for name, tensor in models[0].items()}]
    base = {name: torch.zeros_like(tensor) for name, tensor in models[0].items()}
    parameters = {"density": 0.2, "clip_fraction": 0.01, "scaling_coefficient": 1.0, "variant": "vision"}
    merged = MemoryMerge(load_method(METHOD), parameters, piece_elements=1 << 16)(base, models)
    assert_close(merged, by_hand(to_arrays(base), [to_arrays(model) for model in models], [1.0, 1.0], parameters))


def test_a_negative_score_can_be_kept() -> None:
    opposed = MemorySource({"w": torch.zeros(3)}, [{"w": torch.tensor(row)} for row in ([1.0, 4, 0], [-8.0, 8, 0])])
    bounds: CompetitionBounds = collect(PcbParameters(density=1.0))[0].collect(opposed)
    assert bounds.scores[0].low < 0 < bounds.scores[0].high


@given(scores=st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=20))
def test_magnitudes_stand_for_scores_in_the_same_order(scores: list[float]) -> None:
    magnitudes = to_magnitudes(torch.tensor(scores)).tolist()
    assert [to_score(magnitude) for magnitude in magnitudes] == scores
    assert min(magnitudes) >= 0
    assert sorted(range(len(scores)), key=lambda at: (magnitudes[at], at)) == sorted(
        range(len(scores)), key=lambda at: (scores[at], at)
    )


def test_rescaling_ends_at_the_bounds() -> None:
    assert rescale(torch.tensor([-1.0, 1.0, 2.0, 9.0]), Bounds(1.0, 3.0)).tolist() == [0.0, 0.0, 0.5, 1.0]
    assert rescale(torch.tensor([2.0]), Bounds(2.0, 2.0)).tolist() == [0.0]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    weights=st.lists(st.sampled_from([0.5, 1.0, 1.2, -1.0, 0.0]), min_size=1, max_size=5),
    density=st.sampled_from([0.02, 0.1, 0.5, 0.93, 1.0]),
    clip_fraction=st.sampled_from([0.0, 0.01, 0.1, 0.25]),
    variant=st.sampled_from(["vision", "script"]),
    has_ties=st.booleans(),
    piece_elements=st.sampled_from([1, 5, 1 << 20]),
)
def test_agrees_with_whole_rows_sorted(  # noqa: PLR0913 what Hypothesis draws
    *,
    seed: int,
    weights: list[float],
    density: float,
    clip_fraction: float,
    variant: str,
    has_ties: bool,
    piece_elements: int,
) -> None:
    parameters = {
        "density": density, "clip_fraction": clip_fraction, "scaling_coefficient": 0.7, "variant": variant,
    }  # fmt: skip
    base, models = (draw_integers if has_ties else draw_normal)(seed, len(weights))
    merged = MemoryMerge(load_method(METHOD), parameters, weights, piece_elements=piece_elements)(base, models)
    assert_close(merged, by_hand(to_arrays(base), [to_arrays(model) for model in models], weights, parameters))
