"""Merging state dicts in memory, piece by piece as the pipeline does: what tests and parity runs call a method with."""

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, TypeVar

import torch
from torch import Tensor

from app.domain.catalog import fill_defaults
from workers.contract import MergeContext, MergeMethod, Piece

Result = TypeVar("Result")
StateDict = Mapping[str, Tensor]


@dataclass(frozen=True)
class MemorySource:
    """A merge set that lies in memory, cut into runs of at most `piece_elements` elements."""

    base: StateDict | None
    models: Sequence[StateDict]
    model_weights: Sequence[float] = ()
    piece_elements: int = 1 << 20

    @property
    def tensors(self) -> Sequence[tuple[str, tuple[int, ...], int]]:
        found: list[tuple[str, tuple[int, ...], int]] = []
        position = 0
        for name in sorted(self.models[0]):
            shape = tuple(self.models[0][name].shape)
            found.append((name, shape, position))
            position += prod(shape)
        return found

    @property
    def n_models(self) -> int:
        return len(self.models)

    @property
    def weights(self) -> Sequence[float]:
        return self.model_weights or (1.0,) * self.n_models

    def map(self, function: Callable[[Piece], Result], tensors: Container[str] | None = None) -> Iterator[Result]:
        for name, shape, _ in self.tensors:
            n = prod(shape) if tensors is None or name in tensors else 0
            for offset in range(0, n, self.piece_elements):
                yield function(self.read(name, offset, min(self.piece_elements, n - offset)))

    def read(self, tensor: str, offset: int, n_elements: int) -> Piece:
        shape, start = next((shape, position) for name, shape, position in self.tensors if name == tensor)
        run = slice(offset, offset + n_elements)
        return Piece(
            tensor=tensor,
            shape=shape,
            offset=offset,
            position=start + offset,
            base=None if self.base is None else self.base[tensor].float().flatten()[run],
            finetuned=torch.stack([model[tensor].float().flatten()[run] for model in self.models]),
        )


@dataclass(frozen=True)
class MemoryMerge:
    """A method with all it needs, ready to run over state dicts in memory."""

    method: MergeMethod
    parameters: Mapping[str, Any] = field(default_factory=dict)
    weights: Sequence[float] = ()
    seed: int = 0
    model_keys: tuple[str, ...] = ()
    piece_elements: int = 1 << 20

    def __call__(self, base: StateDict | None, models: Sequence[StateDict]) -> dict[str, Tensor]:
        """Return the merged state dict, float32."""
        source = MemorySource(base, models, self.weights, self.piece_elements)
        effective = fill_defaults(self.method.card.parameters, self.parameters, n_models=len(models))
        parameters = self.method.parameters.model_validate(effective)
        statistics = {request.name: request.collect(source) for request in self.method.collect(parameters)}
        return {
            name: self._merge_tensor(source, (name, shape, position), parameters, statistics)
            for name, shape, position in source.tensors
        }

    def _merge_tensor(
        self, source: MemorySource, tensor: tuple[str, tuple[int, ...], int], parameters: Any, statistics: Any
    ) -> Tensor:
        name, shape, position = tensor
        n = prod(shape)
        merged = [torch.empty(0)]
        step = self._step(shape)
        for offset in range(0, n, step):
            piece = source.read(name, offset, min(step, n - offset))
            cut = self._shape_of_piece(shape, piece.finetuned.shape[1])
            context = MergeContext(
                tensor=name,
                shape=shape,
                offset=offset,
                position=position + offset,
                weights=tuple(source.weights),
                seed=self.seed,
                model_keys=self.model_keys or tuple(f"model {index}" for index in range(source.n_models)),
                statistics=statistics,
            )
            base = None if piece.base is None else piece.base.view(cut)
            finetuned = piece.finetuned.view(source.n_models, *cut)
            before = torch.cat([finetuned, *([] if base is None else [base.unsqueeze(0)])])
            part = self.method.merge(base, finetuned, parameters, context)
            after = torch.cat([finetuned, *([] if base is None else [base.unsqueeze(0)])])
            assert torch.equal(before, after), "a method changed its argument"
            assert part.shape == torch.Size(cut)
            assert part.dtype == torch.float32
            merged.append(part.flatten())
        return torch.cat(merged).view(shape)

    def _step(self, shape: tuple[int, ...]) -> int:
        if self.method.card.granularity == "element":
            return self.piece_elements
        if self.method.card.granularity == "row":
            width = _width(shape)
            return max(1, width) * max(1, self.piece_elements // max(1, width))
        return max(1, prod(shape))

    def _shape_of_piece(self, shape: tuple[int, ...], n: int) -> tuple[int, ...]:
        if self.method.card.granularity == "element":
            return (n,)
        if self.method.card.granularity == "row":
            return (n // _width(shape), _width(shape))
        return shape


def _width(shape: tuple[int, ...]) -> int:
    return shape[-1] if len(shape) > 1 else prod(shape)
