"""LoRA layers as their first-order Taylor expansion in the factors, around where these began, φ₀ = (A₀, B₀).

    f(x; φ₀) + J(x; φ₀)·(φ − φ₀) = W x + s [ B₀ A₀ + (B − B₀) A₀ + B₀ (A − A₀) ] x = W x + s [ B A₀ + B₀ (A − A₀) ] x

Linear layers compute the closed form on the right; others, such as convolutions, the Jacobian-vector product. The
network around them stays non-linear.

Source: Tang et al. 2023, arXiv:2310.04742, §3 (partial linearization).
"""

from typing import Any, cast

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from workers.training.injection import ADAPTER, Layers, factors


def linearize(module: torch.nn.Module, layers: Layers) -> dict[str, "LinearizedLora"]:
    """Put the expansion around the factors' present values in the place of each LoRA layer of the module."""
    made: dict[str, LinearizedLora] = {}
    for name, layer in layers.items():
        parent, _, leaf = name.rpartition(".")
        is_linear = isinstance(layer.get_base_layer(), torch.nn.Linear | Conv1D)
        made[name] = ClosedForm(layer) if is_linear else JacobianVectorProduct(layer)
        setattr(module.get_submodule(parent), leaf, made[name])
    return made


class LinearizedLora(torch.nn.Module):
    """A LoRA layer and the values at which its factors began."""

    a_start: Tensor  # [r, in, *kernel]
    b_start: Tensor  # [out, r, 1, …]

    def __init__(self, layer: LoraLayer) -> None:
        super().__init__()
        self.layer = layer
        a, b = factors(layer)
        self.register_buffer("a_start", a.detach().clone(), persistent=False)
        self.register_buffer("b_start", b.detach().clone(), persistent=False)
        self.learns_a = bool(b.any())  # where B₀ is zero the output does not depend on A, and A stays
        a.requires_grad = self.learns_a

    @property
    def weight(self) -> Tensor:
        """The base layer's weight, which some architectures look at."""
        return self.layer.get_base_layer().get_parameter("weight")

    @property
    def start(self) -> tuple[Tensor, Tensor]:
        """A₀ and B₀."""
        return self.a_start, self.b_start


class ClosedForm(LinearizedLora):
    """The expansion of a linear layer."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # Any: whatever the base layer takes
        """Return W x + s [ B A₀ + B₀ (A − A₀) ] x."""
        a, b = factors(self.layer)
        dropped = self.layer.lora_dropout[ADAPTER](x)
        update = functional.linear(functional.linear(dropped, self.a_start), b)
        if self.learns_a:
            update = update + functional.linear(functional.linear(dropped, a - self.a_start), self.b_start)
        return self.layer.base_layer(x, *args, **kwargs) + update * self.layer.scaling[ADAPTER]  # type: ignore[no-any-return]


class JacobianVectorProduct(LinearizedLora):
    """The expansion of any layer, by forward differentiation."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # Any: as above
        """Return f(x; φ₀) + J(x; φ₀)·(φ − φ₀)."""
        names = (f"lora_A.{ADAPTER}.weight", f"lora_B.{ADAPTER}.weight")

        layer = cast(torch.nn.Module, self.layer)  # PEFT's type is a mixin's

        def compute(*values: Tensor) -> Tensor:
            given = dict(zip(names, values, strict=True))
            return torch.func.functional_call(layer, given, (x, *args), kwargs)  # type: ignore[no-any-return]

        changes = tuple(value - start for value, start in zip(factors(self.layer), self.start, strict=True))
        found = torch.func.jvp(compute, self.start, changes)
        return found[0] + found[1]  # type: ignore[no-any-return]
