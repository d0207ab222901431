"""The majority of elected signs: counted after the trim, over the whole model, whatever the cut."""

import pytest
import torch

from tests.workers.memory import MemorySource
from workers.statistics.magnitudes import MagnitudeBoundaries
from workers.statistics.majority import TrimmedMajority

BASE = {"a": torch.zeros(2), "b": torch.zeros(3)}
FIRST = {"a": torch.tensor([5.0, -1.0]), "b": torch.tensor([-1.0, -1.0, 4.0])}
SECOND = {"a": torch.tensor([0.0, 0.0]), "b": torch.tensor([0.0, 2.0, -4.0])}


def _request(n_kept: int, *, is_weighted: bool = False) -> TrimmedMajority:
    boundaries = MagnitudeBoundaries("trim", "global", lambda n: (min(n, n_kept),))
    return TrimmedMajority("majority", boundaries, is_weighted=is_weighted)


@pytest.mark.parametrize("piece_elements", [1, 2, 100])
def test_most_elected_signs_win(piece_elements: int) -> None:
    # untrimmed totals: 5, -1, -1, 1, 0: two of each sign, an even count is +
    source = MemorySource(BASE, [FIRST, SECOND], piece_elements=piece_elements)
    assert _request(5).collect(source).majority == 1
    # without the second model: 5, -1, -1, -1, 4
    assert _request(5).collect(MemorySource(BASE, [FIRST], piece_elements=piece_elements)).majority == -1


def test_only_what_is_left_by_the_trim_votes() -> None:
    # the two largest of the first model are 5 and 4: both +
    assert _request(2).collect(MemorySource(BASE, [FIRST])).majority == 1


def test_weights_count_when_asked_to() -> None:
    # totals 1·first + 3·second: 5, -1, -1, 5, -8: three of five are -
    source = MemorySource(BASE, [FIRST, SECOND], (1.0, 3.0))
    assert _request(5, is_weighted=True).collect(source).majority == -1
    assert _request(5).collect(source).majority == 1


def test_a_negative_weight_turns_the_signs() -> None:
    assert _request(5).collect(MemorySource(BASE, [FIRST], (-1.0,))).majority == 1


def test_the_boundaries_of_the_trim_come_along() -> None:
    request = _request(2)
    source = MemorySource(BASE, [FIRST])
    assert request.collect(source).boundaries.of("a") == request.boundaries.collect(source).of("a")
    assert request.n_passes == request.boundaries.n_passes + 1
