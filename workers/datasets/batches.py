"""Batches of examples by their indices, drawn without end."""

from collections.abc import Iterator

import torch


def draw_batches(n_examples: int, batch_size: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Yield batches of indices: one shuffled pass over the examples after another.

    A batch may reach from one pass into the next, so all have the same size; where the examples are fewer than a batch,
    an example can occur in it more than once.
    """
    waiting: list[int] = []
    while True:
        while len(waiting) < batch_size:
            waiting += torch.randperm(n_examples, generator=generator).tolist()
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]
