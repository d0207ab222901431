"""Counts of what models change alone and together."""

import pytest
import torch

from tests.workers.memory import MemorySource
from workers.statistics.overlaps import Overlap, Overlaps


@pytest.mark.parametrize("piece_elements", [1, 2, 100])
def test_overlaps_are_counted_by_tensor_whatever_the_pieces(piece_elements: int) -> None:
    base = {"a": torch.zeros(5), "b": torch.zeros(1), "c": torch.zeros(0)}
    models = [
        {"a": torch.tensor([1.0, -1.0, 0.1, 1.0, 0.0]), "b": torch.ones(1), "c": torch.zeros(0)},
        {"a": torch.tensor([0.0, 1.0, 1.0, -1.0, 0.0]), "b": torch.zeros(1), "c": torch.zeros(0)},
    ]
    found = Overlaps("overlaps", 0.1).collect(MemorySource(base, models, piece_elements=piece_elements))
    assert found == {"a": [Overlap(2, 1), Overlap(2, 1)], "b": [Overlap(0, 1), Overlap(0, 0)]}
