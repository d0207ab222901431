"""What the tests of random methods share: one small model merged under many seeds, and how far means may stray."""

from collections.abc import Mapping
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from tests.workers.memory import MemoryMerge
from workers.catalog import load_method

N_SEEDS = 400
ENTRIES = torch.tensor([[3.0, -1.0, 0.5, 0.25], [-2.0, 0.125, 1.5, 4.0]])


def merge_entries(method: str, parameters: Mapping[str, Any], entries: Tensor = ENTRIES, **how: Any) -> Tensor:
    """Return the merge of a base of zeros and one model. how: seed, model_keys, piece_elements of MemoryMerge."""
    merge = MemoryMerge(load_method(method), parameters, **how)
    return merge({"w": torch.zeros_like(entries)}, [{"w": entries}])["w"]


def draw_seeds(method: str, parameters: Mapping[str, Any]) -> Tensor:
    """Return the merges of ENTRIES under many seeds, [seeds, rows, width] float64."""
    return torch.stack([merge_entries(method, parameters, seed=seed) for seed in range(N_SEEDS)]).double()


def reach_of_mean(deviation: Tensor) -> Tensor:
    """Return four standard errors of the mean over the seeds."""
    return 4 * deviation / sqrt(N_SEEDS)
