"""Surgery modules: small corrections of what a model computes, a task's own, in memory and as parts of a patch file.

A module subtracts a low-rank, non-linear function of a representation z from it, either of the features that a head
sees or of what a block gives. It runs beside the weights: no dense model holds it. The file is told in docs/patches.md.

Source: Yang et al. 2024, arXiv:2402.02705 (Representation Surgery), equation 3.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from app.domain.errors import HeadMismatch, ModelNotRunnable
from workers.patches import Part

FEATURES = "features"  # the place of what the head sees; any other place is a block's path within the model's body
DOWN, UP = "down", "up"


@dataclass(frozen=True)
class SurgeryModule:
    """z becomes z − U ReLU(D z)."""

    down: Tensor  # D, [r, width] float32
    up: Tensor  # U, [width, r] float32

    @property
    def width(self) -> int:
        """Of the representation that it corrects."""
        return self.up.shape[0]

    @property
    def n_values(self) -> int:
        """Numbers in it."""
        return self.down.numel() + self.up.numel()

    def __call__(self, found: Tensor) -> Tensor:
        """Return a representation corrected, [..., width]."""
        down, up = (matrix.to(found) for matrix in (self.down, self.up))
        return found - (found @ down.mT).relu() @ up.mT


Modules = Mapping[str, SurgeryModule]  # of one task, by place


def encode(module: SurgeryModule) -> list[Part]:
    """Return a module's parts as they are stored."""
    return [
        Part(role, matrix.detach().float().cpu().contiguous(), tuple(matrix.shape))
        for role, matrix in ((DOWN, module.down), (UP, module.up))
    ]


def correct(features: Callable[[Sequence[int]], Tensor], modules: Modules) -> Callable[[Sequence[int]], Tensor]:
    """Return what gives a task's features [n, width] corrected. Raises: HeadMismatch for features of another width."""
    module = modules.get(FEATURES)
    if module is None:
        return features
    return lambda batch: module(_fitting(features(batch), module, FEATURES))


def attach(model: nn.Module, modules: Modules, *, has_features: bool) -> None:
    """Let a model run with a task's modules behind its blocks, from now on.

    has_features: whether the features that the head sees are at hand, to be corrected by `correct`.
    Raises: HeadMismatch where they are to be corrected and are not; ModelNotRunnable for a block that the model lacks.
    """
    if FEATURES in modules and not has_features:
        raise HeadMismatch(
            "The task's patch corrects the features before the head, and the head is the checkpoint's own, whose "
            "features are not at hand; make a task with another head, or merge by surgery_v2, which corrects blocks."
        )
    body = body_of(model)
    for place, module in modules.items():
        if place != FEATURES:
            find_block(body, place).register_forward_hook(_correcting(module, place))


def find_block(body: nn.Module, path: str) -> nn.Module:
    """Return a block by its path within the model's body. Raises: ModelNotRunnable where there is none."""
    try:
        return body.get_submodule(path)
    except AttributeError:
        raise ModelNotRunnable(
            f"A surgery module stands behind the block {path!r}, which a {type(body).__name__} does not have; use the "
            "patch with the model that it was made for."
        ) from None


def body_of(model: nn.Module) -> nn.Module:
    """Return a model without its own head, within which blocks have their paths."""
    body: nn.Module = getattr(model, "base_model", model)
    return body


def first_of(output: Any) -> Tensor:  # Any: a block gives a tensor, or a tuple that begins with one
    """Return the representation in what a block gives."""
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found


def with_first(output: Any, corrected: Tensor) -> Any:  # likewise
    """Return what a block gives with another representation."""
    return (corrected, *output[1:]) if isinstance(output, tuple) else corrected


def _correcting(module: SurgeryModule, place: str) -> Callable[..., Any]:
    return lambda _block, _arguments, output: with_first(output, module(_fitting(first_of(output), module, place)))


def _fitting(found: Tensor, module: SurgeryModule, place: str) -> Tensor:
    if found.shape[-1] != module.width:
        raise HeadMismatch(
            f"The surgery module of {place!r} corrects a width of {module.width}, the model gives {found.shape[-1]} "
            "there; use the patch with the model, and under the pooling, that it was made for."
        )
    return found
