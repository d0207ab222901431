"""Draws by position: the same whatever the cut, spread over [0, 1), different for every key."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from workers.numerics import randomness


def test_first_draws_are_those_of_splitmix64() -> None:
    # SplitMix64 seeded with 0 gives 0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F
    draws = randomness.draw_uniform(0, start=0, n=3).tolist()
    assert draws == [(word >> 11) * 2.0**-53 for word in (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F)]


@given(key=st.integers(0, 2**64 - 1), start=st.integers(0, 10**12), cut=st.integers(0, 50))
def test_a_cut_does_not_change_the_draws(key: int, start: int, cut: int) -> None:
    whole = randomness.draw_uniform(key, start=start, n=50)
    parts = (
        randomness.draw_uniform(key, start=start, n=cut),
        randomness.draw_uniform(key, start=start + cut, n=50 - cut),
    )
    assert torch.equal(torch.cat(parts), whole)
    assert float(whole.min()) >= 0.0
    assert float(whole.max()) < 1.0


def test_draws_are_spread_evenly() -> None:
    draws = randomness.draw_uniform(12345, start=0, n=100_000)
    counts = torch.histc(draws, bins=10, min=0, max=1)
    assert float((counts - 10_000).abs().max()) < 500  # five standard deviations of 95


def test_keys_give_independent_draws() -> None:
    first, second = (randomness.draw_uniform(key, start=0, n=100_000) for key in (1, 2))
    correlation = float(torch.corrcoef(torch.stack([first, second]))[0, 1])
    assert abs(correlation) < 0.016  # five standard deviations
