"""The windows that a sample suggests: narrow, and right but for bad luck."""

from typing import Any

import numpy as np
import pytest
import torch

from tests.workers.memory import MemorySource
from workers.statistics import rank_samples
from workers.statistics.rank_samples import guess_windows
from workers.statistics.rank_scopes import Effort, Scope


def test_tensors_of_different_scale_do_not_widen_the_window() -> None:
    generator = torch.Generator().manual_seed(3)
    model = {
        f"{index:02}": scale * torch.randn(1 << 14, generator=generator)
        for index, scale in enumerate(torch.logspace(-2, 0, 64))
    }
    source = MemorySource(None, [model])
    rank, parts = 1 << 18, tuple((name, 1 << 14, position) for name, _, position in source.tensors)
    effort = Effort(sample_run_elements=64, elements_per_sample_run=1 << 12)
    ((window,),) = guess_windows(source, [Scope(parts, 1 << 20, (rank,))], [0], effort).values()
    keys = torch.cat(list(model.values())).abs().numpy().view(np.int32)
    assert window.low <= int(np.sort(keys)[-rank]) <= window.high
    assert np.mean((keys >= window.low) & (keys <= window.high)) < 0.05


@pytest.mark.parametrize("is_like_the_rest", [True, False])
def test_entries_of_a_sample_are_found_by_index(*, is_like_the_rest: bool) -> None:
    entries = np.random.default_rng(0).integers(0, 1000, 20_000, dtype=np.int32)
    some = np.sort(entries[::5]) if is_like_the_rest else np.full(100, 999, dtype=np.int32)  # these mislead
    ordered = np.sort(entries)
    for below, above in ((0, 1), (3_000, 3_100), (10_000, 19_999), (0, 19_999)):
        found = rank_samples._at(entries.copy(), below, above, some)
        assert found == (ordered[below], ordered[above])


@pytest.mark.parametrize("n_models", [1, 3, 16])
def test_a_sample_takes_no_more_memory_with_many_models(n_models: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    read_sample = rank_samples._read_sample

    def read(*arguments: Any) -> Any:
        keys = read_sample(*arguments)
        sizes.append(keys.size)
        return keys

    monkeypatch.setattr(rank_samples, "_read_sample", read)
    generator = torch.Generator().manual_seed(4)
    models = [{"w": torch.randn(1 << 16, generator=generator)} for _ in range(n_models)]
    effort = Effort(sample_run_elements=256, elements_per_sample_run=1 << 10, max_sampled=1 << 14)
    scope = Scope((("w", 1 << 16, 0),), 1 << 16, (1 << 14,))
    (windows,) = guess_windows(MemorySource(None, models), [scope], [0], effort).values()
    assert 0.9 * (1 << 14) < sum(sizes) <= 1 << 14
    for model, window in zip(models, windows, strict=True):
        key = int(np.sort(model["w"].abs().numpy().view(np.int32))[-(1 << 14)])
        assert window.low <= key <= window.high
