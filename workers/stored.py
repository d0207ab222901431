"""One tensor of all models, read from their files when it is asked for: what sees whole tensors need not hold them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from workers.transport import HOST, Transport

# model, flat index of the first element, what is filled, [rows, length] float32, elements from one row to the next
ReadRows = Callable[[int, int, Tensor, int], None]


@dataclass(frozen=True)
class StoredModels:
    """[n, *shape] float32, of which nothing is held; it has as much of a tensor's interface as whoever may get either.

    What is read is new each time, in memory of its own. `held` reads all of it, once, for those who need it at once.
    """

    shape: tuple[int, ...]  # [n, *shape]
    read_rows: ReadRows
    transport: Transport = HOST

    def __len__(self) -> int:
        """How many models there are."""
        return self.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        """Yield each model's tensor, [*shape]."""
        size = prod(self.shape[1:])
        return (self.read_block(model, slice(0, 1), slice(0, size), size).view(self.shape[1:]) for model in self.models)

    @property
    def device(self) -> torch.device:
        """Where what is read is."""
        return self.transport.device

    @property
    def models(self) -> range:
        """The numbers of the models."""
        return range(self.shape[0])

    def read_block(self, model: int, rows: slice, columns: slice, width: int) -> Tensor:
        """Return a block of a model's tensor, seen as rows of some width; the slices have both their ends."""
        size = (rows.stop - rows.start, columns.stop - columns.start)
        start = rows.start * width + columns.start
        return self.transport.read(size, lambda out: self.read_rows(model, start, out, width))

    def reshape(self, *shape: int) -> "StoredModels":
        """Return the same in another shape, [n, *shape]."""
        return replace(self, shape=shape)

    def through(self, transport: Transport) -> "StoredModels":
        """Return the same, which takes what it reads to another place."""
        return replace(self, transport=transport)

    @cached_property
    def held(self) -> Tensor:
        """All of it, [n, *shape]."""
        found = torch.empty(self.shape, device=self.device)
        for place, model in zip(found, self, strict=True):
            place.copy_(model)
        return found


Models = Tensor | StoredModels


def hold(models: Models) -> Tensor:
    """Return the models as one tensor, [n, *shape]."""
    return models if isinstance(models, Tensor) else models.held


def send(models: Models, transport: Transport) -> Models:
    """Return the models of the host where a transport takes them."""
    return transport.send(models) if isinstance(models, Tensor) else models.through(transport)
