"""Gram matrices of what enters each linear layer, summed while a model runs.

Source: Jin et al. 2022, arXiv:2212.09849, section 3.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from app.domain.errors import NotFinite
from workers.model_contract import Probe

TRANSPOSED = ".transposed"  # behind the name of a tensor that is stored [in, out]


@dataclass(frozen=True)
class LinearLayer:
    """A linear layer whose weight is merged."""

    tensor: str  # name of its weight
    path: str  # of the module
    module: nn.Module
    is_transposed: bool  # its weight is [in, out]

    @property
    def gram(self) -> str:
        """Under which name its Gram matrix is kept."""
        return self.tensor + TRANSPOSED if self.is_transposed else self.tensor


def find_linear_layers(module: nn.Module, weights: Mapping[str, nn.Parameter]) -> list[LinearLayer]:
    """Return the linear layers of a model whose weight is merged and held by no other module, as an embedding may be.

    weights: the merged parameters by tensor name.
    """
    holders: dict[int, int] = {}
    for one in module.modules():
        for parameter in one.parameters(recurse=False):
            holders[id(parameter)] = holders.get(id(parameter), 0) + 1
    names = {id(parameter): name for name, parameter in weights.items()}
    return [
        LinearLayer(names[id(one.weight)], path, one, isinstance(one, Conv1D))
        for path, one in module.named_modules()
        if isinstance(one, nn.Linear | Conv1D) and id(one.weight) in names and holders[id(one.weight)] == 1
    ]


class GramSums:
    """Σ x xᵀ over the inputs x of layers, in float64."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    @contextmanager
    def watching(self, layers: Sequence[LinearLayer]) -> Iterator[None]:
        """Add what enters these layers meanwhile."""
        handles = [layer.module.register_forward_pre_hook(self._hook(layer.gram)) for layer in layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def means(self) -> dict[str, Tensor]:
        """Return (1/N) Σ x xᵀ, [in, in] float64, of every layer that was run. Raises: NotFinite naming a layer."""
        for name, total in self._sums.items():
            if not bool(torch.isfinite(total).all()):
                raise NotFinite(
                    f"What enters the layer {name!r} is NaN or infinite, expected finite numbers; look for NaN in the "
                    "model, or exclude the tensor."
                )
        return {name: total / self._counts[name] for name, total in self._sums.items()}

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def add(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            rows = arguments[0].detach().flatten(end_dim=-2)  # [n, in]
            product = (rows.mT @ rows).double()
            self._sums[name] = self._sums[name].add_(product) if name in self._sums else product
            self._counts[name] = self._counts.get(name, 0) + len(rows)

        return add


def measure_grams(probe: Probe, layers: Sequence[LinearLayer], on_example: Callable[[int], None]) -> dict[str, Tensor]:
    """Return the Gram matrices of layers over the probe's examples, one by one: no padding, nothing of a batch.

    on_example: how many are done. Raises: NotFinite naming a layer.
    """
    sums = GramSums()
    with torch.no_grad(), sums.watching(layers):
        for index in range(probe.n_examples):
            probe.losses([index])
            on_example(index + 1)
    return sums.means()
