"""Random sets of tiny checkpoints: a base and models near it, with what gives trouble in them."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from app.domain.checkpoints import LocalCheckpoint
from tests.workers.files import write_checkpoint

MODELS = 4  # of a set, beside the base
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SHAPES: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (9, 6),
    "model.layers.0.mlp.weight": (12, 6),
    "model.layers.0.mlp.bias": (12,),
    "model.layers.0.norm.running_var": (6,),
    "model.layers.1.mlp.weight": (6, 12),
    "model.layers.1.conv.weight": (3, 2, 2, 2),
    "model.empty": (0, 4),
    "model.one": (1,),
    "model.scale": (),
    "model.row": (1, 40),
    "model.long": (700,),
}
State = dict[str, Tensor]
Trouble = Callable[[random.Random, State, list[State]], None]


@dataclass(frozen=True)
class ModelSet:
    """The same checkpoints twice: in one file each, and in three."""

    trouble: str
    whole: tuple[LocalCheckpoint, ...]  # the base first
    sharded: tuple[LocalCheckpoint, ...]


def write_sets(folder: Path, seed: int) -> list[ModelSet]:
    """Write a set for every trouble, and one without any."""
    return [
        _write_set(folder / name, name, trouble, random.Random(f"{seed}/{name}"))
        for name, trouble in (("none", lambda *_: None), *TROUBLES.items())
    ]


def _write_set(folder: Path, name: str, trouble: Trouble, chance: random.Random) -> ModelSet:
    generator = torch.Generator().manual_seed(chance.getrandbits(60))
    dtype = chance.choice(DTYPES)
    base = {tensor: torch.randn(shape, generator=generator).abs_().to(dtype) for tensor, shape in SHAPES.items()}
    base["model.positions"] = torch.arange(7)
    models = [{tensor: _tune(values, generator) for tensor, values in base.items()} for _ in range(MODELS)]
    trouble(chance, base, models)
    written = [
        tuple(
            write_checkpoint(folder / f"{n_shards}-{index}", state, n_shards=n_shards)
            for index, state in enumerate((base, *models))
        )
        for n_shards in (1, 3)
    ]
    return ModelSet(name, *written)


def _tune(values: Tensor, generator: torch.Generator) -> Tensor:
    if not values.is_floating_point():
        return values.clone()
    noise = 0.1 * torch.randn(values.shape, generator=generator)
    return (values.float() + noise * (noise.abs() > 0.05)).to(values.dtype)


# --- what gives trouble -------------------------------------------------------------------------------------------


def _any_tensor(chance: random.Random, base: State) -> str:
    return chance.choice([name for name, values in base.items() if values.is_floating_point() and values.numel()])


def _put(chance: random.Random, base: State, models: list[State], values: tuple[float, ...]) -> None:
    for state in chance.sample([base, *models], 2):
        tensor = state[_any_tensor(chance, base)]
        tensor.view(-1)[chance.randrange(tensor.numel())] = chance.choice(values)


def _not_finite(chance: random.Random, base: State, models: list[State]) -> None:
    _put(chance, base, models, (float("nan"), float("inf"), float("-inf")))


def _huge(chance: random.Random, base: State, models: list[State]) -> None:
    _put(chance, base, models, (3e38, -3e38, 6e4, 1e-40))


def _equal(_: random.Random, base: State, models: list[State]) -> None:
    models[:] = [{name: values.clone() for name, values in base.items()} for _ in models]


def _opposite(_: random.Random, base: State, models: list[State]) -> None:
    for one, other in zip(models[::2], models[1::2], strict=True):
        for name, values in base.items():
            if values.is_floating_point():
                other[name] = 2 * values - one[name]


def _low_rank(_: random.Random, base: State, models: list[State]) -> None:
    for at, model in enumerate(models):
        for name, values in base.items():
            if values.dim() == 2 and values.is_floating_point():
                model[name] = values.clone()
                model[name][at % max(1, len(values)) :: 5] += 1.0


def _zeros(_: random.Random, base: State, models: list[State]) -> None:
    for state in (base, *models):
        for values in state.values():
            values.zero_()


def _missing(chance: random.Random, base: State, models: list[State]) -> None:
    del chance.choice(models)[_any_tensor(chance, base)]


def _extra(chance: random.Random, base: State, models: list[State]) -> None:
    chance.choice([base, *models])["model.extra"] = torch.ones(3)


def _other_shape(chance: random.Random, base: State, models: list[State]) -> None:
    name = _any_tensor(chance, base)
    chance.choice(models)[name] = torch.ones(*base[name].shape, 2, dtype=base[name].dtype)


def _other_dtype(chance: random.Random, base: State, models: list[State]) -> None:
    for model in models:
        dtype = chance.choice(DTYPES)
        model.update({name: values.to(dtype) for name, values in model.items() if values.is_floating_point()})


def _other_integers(_: random.Random, base: State, models: list[State]) -> None:
    models[0]["model.positions"] += 1


def _only_integers(_: random.Random, base: State, models: list[State]) -> None:
    for state in (base, *models):
        positions = state["model.positions"]
        state.clear()
        state["model.positions"] = positions


TROUBLES: dict[str, Trouble] = {
    "not_finite": _not_finite,
    "huge": _huge,
    "equal": _equal,
    "opposite": _opposite,
    "low_rank": _low_rank,
    "zeros": _zeros,
    "missing": _missing,
    "extra": _extra,
    "other_shape": _other_shape,
    "other_dtype": _other_dtype,
    "other_integers": _other_integers,
    "only_integers": _only_integers,
}
