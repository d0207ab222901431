import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workers.memory import MemorySource
from tests.workers.models import draw_normal
from workers.statistics.means import MeanMagnitudes


def test_means_are_counted_within_each_tensor() -> None:
    base = {"empty": torch.zeros(0, 2), "w": torch.ones(2, 2)}
    models = [{"empty": torch.zeros(0, 2), "w": torch.tensor([[2.0, 0.0], [1.0, 4.0]])}, base]
    # magnitudes 1, 1, 0, 3 and nothing
    assert MeanMagnitudes("means").collect(MemorySource(base, models)) == {"empty": (0.0, 0.0), "w": (1.25, 0.0)}


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), piece_elements=st.integers(1, 40))
def test_no_cut_into_pieces_shows(seed: int, piece_elements: int) -> None:
    base, models = draw_normal(seed, 2)
    whole = MeanMagnitudes("means").collect(MemorySource(base, models))
    assert MeanMagnitudes("means").collect(MemorySource(base, models, piece_elements=piece_elements)) == whole
