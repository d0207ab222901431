"""Which examples a step sees: shuffled passes, from the seed alone."""

from collections.abc import Iterator

import torch


def draw_batches(n_examples: int, batch_size: int, seed: int) -> Iterator[list[int]]:
    """Yield batches of indices without end: one shuffled pass over the examples after another.

    A batch may reach from one pass into the next, so all have the same size; where the examples are fewer than a batch,
    an example can occur in it more than once.
    """
    generator = torch.Generator().manual_seed(seed)
    waiting: list[int] = []
    while True:
        while len(waiting) < batch_size:
            waiting += torch.randperm(n_examples, generator=generator).tolist()
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]
