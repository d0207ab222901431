"""Two sums over models whose quotient is the merged task vector: kept beside a result, so that models can be added.

A method returns them of each piece; they are stored as parts of a tensor, like a patch, in a file of their own
(checkpoints/sums_file.py, docs/methods/localize_and_stitch_dataless.md).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from app.domain.patches import LARGEST_INT32
from workers.patches import INDICES, Part

NUMERATOR, DENOMINATOR = "numerator", "denominator"


@dataclass(frozen=True)
class Sums:
    """The models summed up so far."""

    numerator: Tensor  # [*shape] float64: the weighted sum of what the models change
    denominator: Tensor  # [*shape] float64, >= 0: the sum of the weights of the models that change the entry

    def divide(self) -> Tensor:
        """Return the merged task vector, [*shape] float64: 0 where no model changes the entry."""
        return torch.where(self.denominator > 0, self.numerator / self.denominator, 0.0)

    def view(self, shape: tuple[int, ...]) -> "Sums":
        """Return the same in another shape."""
        return Sums(self.numerator.view(shape), self.denominator.view(shape))

    def encode(self, n_elements: int, offset: int) -> list[Part]:
        """Return the entries that a model changes, as they are stored.

        n_elements: of the whole tensor; offset: flat index of the piece's first element. None: no parts.
        """
        denominator = self.denominator.flatten().cpu()
        own = denominator.nonzero().squeeze(1)
        if own.numel() == 0:
            return []
        indices = (own + offset).to(torch.int64 if n_elements > LARGEST_INT32 else torch.int32)
        numerator = self.numerator.flatten().cpu()
        return [Part(INDICES, indices), Part(NUMERATOR, numerator[own]), Part(DENOMINATOR, denominator[own])]
