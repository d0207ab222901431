"""Weights W₀ + s·B̂Â with Â = Σ wᵢ Aᵢ and B̂ = Σ wᵢ Bᵢ, shared by every model that runs with them.

For methods that try coefficients of adapters in the space of their factors: what a model runs with is what the merged
adapter will make of its base.
"""

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor, nn

from workers.contract import PieceSource
from workers.learning.merged_weights import put_in_place
from workers.learning_contract import Factors
from workers.numerics import precision


class ComposedFactors:
    """The tensors that runnable models hold, once for all of them; those that adapters lie on change."""

    def __init__(self, source: PieceSource, factors: Mapping[str, Factors], device: torch.device) -> None:
        """Read the factors. factors: by the base's tensor, of which parts of the merge set they are."""
        self._factors = factors
        self._device = device
        shapes = {name: shape for name, shape, _ in source.tensors}
        names = [name for one in factors.values() for name in (one.a, one.b)]
        self._read = {
            name: source.read(name, 0, prod(shapes[name])).finetuned.view(-1, *shapes[name]) for name in names
        }  # [n, r, in] or [n, out, r]
        self._tensors: dict[str, nn.Parameter] = {}
        self._originals: dict[str, Tensor] = {}  # W₀ of those that adapters lie on

    @property
    def moved(self) -> list[str]:
        """The base's tensors that a model runs with and that adapters lie on, sorted."""
        return sorted(self._originals)

    def bind(self, module: nn.Module, places: Mapping[str, str]) -> None:
        """Put the shared tensors in place of a model's own. places: path of a parameter or buffer -> tensor."""
        own = dict(module.named_buffers(remove_duplicate=False)) | dict(module.named_parameters(remove_duplicate=False))
        for path, name in places.items():
            if name not in self._tensors:
                value = own[path].data.to(self._device)
                self._tensors[name] = nn.Parameter(value, requires_grad=False)
                if name in self._factors:
                    self._originals[name] = value.clone()
            put_in_place(module, path, self._tensors[name])

    def mix(self, coefficients: Mapping[str, Tensor]) -> None:
        """Set the weights, in place. coefficients: one per adapter for each moved tensor, [n]."""
        for name in self.moved:
            of = self._factors[name]
            weights = coefficients[name].tolist()
            a, b = (precision.weighted_sum(self._read[part], weights).float() for part in (of.a, of.b))
            update = (b * of.scaling) @ a
            turned = update.T if of.is_transposed else update
            original = self._originals[name]
            self._tensors[name].data.copy_(original + turned.reshape(original.shape).to(self._device))
