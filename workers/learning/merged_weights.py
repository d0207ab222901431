"""The weights θ = θ₀ + Σ λᵢ τᵢ of a merged model, shared by every model that runs with them; gradients back to λ.

By the chain rule ∂L/∂λᵢ of a tensor is ⟨∂L/∂θ, τᵢ⟩: one model, its gradient, and inner products with task vectors that
stream by, in place of a graph over all models.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from workers.learning.task_vectors import TaskVectors


class MergedWeights:
    """The merged tensors that runnable models hold, once for all of them."""

    def __init__(self, vectors: TaskVectors, device: torch.device) -> None:
        self._vectors = vectors
        self._device = device
        self._tensors: dict[str, nn.Parameter] = {}
        self._moved: list[str] = []

    @property
    def moved(self) -> list[str]:
        """The tensors that a model runs with and that any task vector moves, sorted."""
        return sorted(self._moved)

    def bind(self, module: nn.Module, places: Mapping[str, str]) -> None:
        """Put the merged tensors in place of a model's own. places: path of a parameter or buffer -> tensor."""
        for path, name in places.items():
            if name not in self._vectors.shapes:
                continue  # it is not merged
            owner_path, _, attribute = path.rpartition(".")
            owner = module.get_submodule(owner_path)
            tensor = self._share(name)
            if attribute in owner._buffers:
                tensor.requires_grad = False
                owner._buffers[attribute] = tensor.data
            else:
                setattr(owner, attribute, tensor)

    def mix(self, coefficients: Mapping[str, Tensor]) -> None:
        """Set the weights, in place. coefficients: one per model for each moved tensor, [n]."""
        for name in self.moved:
            weights = coefficients[name].float()
            flat = self._tensors[name].data.view(-1)
            for block in self._vectors.blocks(name):
                mixed = torch.addmv(block.base, block.deltas.T, weights)
                flat[block.offset : block.offset + len(mixed)].copy_(mixed)

    def take_gradients(self) -> dict[str, Tensor]:
        """Return ∂L/∂λ of each moved tensor, [n] float64, from the gradients of the weights, which are dropped."""
        gradients: dict[str, Tensor] = {}
        for name in self.moved:
            gradients[name] = torch.zeros(self._vectors.n_models, dtype=torch.float64)
            slope = self._tensors[name].grad
            if slope is None:
                continue  # no model that was run has used it
            flat = slope.reshape(-1).to("cpu", torch.float32)
            for block in self._vectors.blocks(name):
                gradients[name] += torch.mv(block.deltas, flat[block.offset : block.offset + len(block.base)]).double()
            self._tensors[name].grad = None
        return gradients

    def _share(self, name: str) -> nn.Parameter:
        if name not in self._tensors:
            value = torch.empty(self._vectors.shapes[name], device=self._device)
            is_moved = False
            for block in self._vectors.blocks(name):
                value.view(-1)[block.offset : block.offset + len(block.base)].copy_(block.base)
                is_moved = is_moved or bool(block.deltas.any())
            self._tensors[name] = nn.Parameter(value, requires_grad=is_moved)
            if is_moved:
                self._moved.append(name)
        return self._tensors[name]
