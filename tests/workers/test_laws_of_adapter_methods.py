"""The laws of adapter methods over any number of adapters and any dtype of factors: drawn by Hypothesis.

T1 one adapter comes back; T3 order; T4 copies of one adapter; T8 scale; adapters of zeros add nothing; and, through
files, that threads do not show in the bytes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from app.domain.catalog import load_catalog
from app.domain.checkpoints import LocalCheckpoint
from app.domain.recipes import Recipe, RecipeModel
from tests.workers.adapter_files import AdapterMerge
from tests.workers.files import write_checkpoint
from tests.workers.peft_folders import Lora, draw_base, draw_modules, write_adapter
from tests.workers.test_every_adapter_method import CASES
from workers.adapter_contract import ModuleUpdates, Update
from workers.catalog import load_adapter_recipe
from workers.pipelines.adapter_program import merge_modules

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = {"layers.0.w": (7, 9), "layers.1.w": (8, 5)}
AVERAGE = {"merge": {"method": "average", "parameters": {}}}
# Of K copies of one adapter a sum gives K times, a sum of both factors K² times, a mean of what agrees once.
POWER_OF_COPIES = {"svd": 1, "cat": 1, "linear": 2, "magnitude_prune": 2, "dare_linear": 2}
POWER_OF_COPIES |= {"magnitude_prune_svd": 1, "dare_linear_svd": 1}
every_method = pytest.mark.parametrize(
    ("method", "parameters"), CASES, ids=lambda value: value if isinstance(value, str) else "-".join(value.values())
)
quickly = settings(max_examples=15, deadline=None)
seeds, counts, dtypes = st.integers(0, 10_000), st.integers(1, 5), st.sampled_from(DTYPES)


def draw(method: str, seed: int, n_models: int, dtype: torch.dtype = torch.float32) -> list[ModuleUpdates]:
    """Return updates of two modules whose factors a file of some dtype can hold."""
    generator = torch.Generator().manual_seed(seed)

    def factor(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype).float()

    modules: list[ModuleUpdates] = []
    for name, (n_out, n_in) in SHAPES.items():
        start = (factor(2, n_in), factor(n_out, 2)) if method == "linearized_lora" else (None, None)
        updates = tuple(Update(factor(2, n_in), factor(n_out, 2), 0.5, *start) for _ in range(n_models))
        modules.append(ModuleUpdates(name, "linear", n_out, n_in, updates))
    return modules


def pick(modules: Sequence[ModuleUpdates], models: Sequence[int]) -> list[ModuleUpdates]:
    """Return the updates of some models, in that order; one may come more than once."""
    return [
        ModuleUpdates(one.name, one.kind, one.n_out, one.n_in, tuple(one.updates[model] for model in models))
        for one in modules
    ]


def scale(modules: Sequence[ModuleUpdates], factor: float) -> list[ModuleUpdates]:
    """Return the same updates, so many times as large."""
    return [
        ModuleUpdates(
            one.name,
            one.kind,
            one.n_out,
            one.n_in,
            tuple(
                Update(update.a, update.b, factor * update.scaling, update.a_start, update.b_start)
                for update in one.updates
                if update is not None
            ),
        )
        for one in modules
    ]


def zeros_of(method: str, n_models: int) -> list[ModuleUpdates]:
    """Return adapters that change nothing, as PEFT begins."""
    modules: list[ModuleUpdates] = []
    for name, (n_out, n_in) in SHAPES.items():
        a, b = torch.ones(2, n_in), torch.zeros(n_out, 2)
        start = (a, b) if method == "linearized_lora" else (None, None)
        modules.append(ModuleUpdates(name, "linear", n_out, n_in, (Update(a, b, 0.5, *start),) * n_models))
    return modules


def merge(
    method: str,
    parameters: dict[str, Any],
    modules: Sequence[ModuleUpdates],
    weights: Sequence[float],
    keys: Sequence[int] | None = None,
) -> dict[str, Tensor]:
    """Return the merged updates, float64. keys: what tells the adapters apart in random draws."""
    card, effective = load_catalog().check(method, parameters, has_base_model=True, weights=weights)
    models = tuple(
        RecipeModel(content_digest=f"{key}", weights_digest=f"{key}", weight=weight)
        for key, weight in zip(keys or range(len(weights)), weights, strict=True)
    )
    recipe = Recipe(method=card.name, method_version=1, models=models, parameters=effective, shard_bytes=1 << 30)
    found = merge_modules(load_adapter_recipe(recipe), recipe, modules).updates
    return {name: one.b.double() @ one.a.double() for name, one in found.items()}


def update_of(update: Update | None) -> Tensor:
    """Return what one adapter adds to a module, float64."""
    assert update is not None
    a, b = update.a.double(), update.b.double()
    if update.a_start is None or update.b_start is None:
        return update.scaling * b @ a
    a_start, b_start = update.a_start.double(), update.b_start.double()
    return update.scaling * (b @ a_start + b_start @ (a - a_start))


@pytest.mark.parametrize("method", sorted({method for method, _ in CASES}))
@quickly
@given(seed=seeds, dtype=dtypes)
def test_t1_one_adapter_with_neutral_parameters_comes_back(method: str, seed: int, dtype: torch.dtype) -> None:
    modules = draw(method, seed, 1, dtype)
    found = merge(method, load_catalog().method(method).neutral_parameters or {}, modules, [1.0])
    for module in modules:
        torch.testing.assert_close(found[module.name], update_of(module.updates[0]), rtol=1e-5, atol=1e-5)


@every_method
@quickly
@given(data=st.data(), seed=seeds, n_models=counts, dtype=dtypes)
def test_t3_the_order_of_adapters_does_not_matter(  # noqa: PLR0913 (what is drawn)
    method: str, parameters: dict[str, Any], data: st.DataObject, seed: int, n_models: int, dtype: torch.dtype
) -> None:
    modules = draw(method, seed, n_models, dtype)
    weights = data.draw(st.lists(st.sampled_from([0.25, 0.5, 1.0, 2.0]), min_size=n_models, max_size=n_models))
    order = data.draw(st.permutations(range(n_models)))
    straight = merge(method, parameters, modules, weights, range(n_models))
    turned = merge(method, parameters, pick(modules, order), [weights[index] for index in order], order)
    for name, update in straight.items():
        torch.testing.assert_close(turned[name], update, rtol=1e-5, atol=1e-5)


@every_method
@quickly
@given(seed=seeds, n_copies=counts, dtype=dtypes)
def test_t4_copies_of_an_adapter_give_it_as_often_as_the_method_adds_up(
    method: str, parameters: dict[str, Any], seed: int, n_copies: int, dtype: torch.dtype
) -> None:
    inside = AVERAGE if load_catalog().method(method).nested else {}
    one = draw(method, seed, 1, dtype)
    alone = merge(method, {**parameters, **inside}, one, [1.0], [0])
    copies = merge(method, {**parameters, **inside}, pick(one, [0] * n_copies), [1.0] * n_copies, [0] * n_copies)
    times = n_copies ** POWER_OF_COPIES.get(parameters.get("combination_type", ""), 0)
    for name, update in alone.items():
        torch.testing.assert_close(copies[name], times * update, rtol=1e-5, atol=1e-5 * times)


@every_method
@quickly
@given(seed=seeds, n_models=counts, dtype=dtypes, exponent=st.integers(-4, 4))
def test_t8_scaled_updates_give_a_scaled_update(  # noqa: PLR0913 (what is drawn)
    method: str, parameters: dict[str, Any], seed: int, n_models: int, dtype: torch.dtype, exponent: int
) -> None:
    modules, factor = draw(method, seed, n_models, dtype), 2.0**exponent
    once, then = (merge(method, parameters, some, [1.0] * n_models) for some in (modules, scale(modules, factor)))
    for name, update in once.items():
        torch.testing.assert_close(then[name], factor * update, rtol=1e-4, atol=1e-5 * factor)


@every_method
@pytest.mark.parametrize("n_models", [1, 3])
def test_adapters_of_zeros_add_nothing(method: str, parameters: dict[str, Any], n_models: int) -> None:
    for update in merge(method, parameters, zeros_of(method, n_models), [1.0] * n_models).values():
        assert not update.any()


@every_method
@quickly
@given(seed=seeds, n_models=counts, dtype=dtypes)
def test_one_adapter_of_zeros_among_others_is_no_trouble(
    method: str, parameters: dict[str, Any], seed: int, n_models: int, dtype: torch.dtype
) -> None:
    modules = draw(method, seed, n_models, dtype)
    blank = [
        Update(one.updates[0].a, torch.zeros(one.n_out, 2), 0.5, one.updates[0].a_start, one.updates[0].b_start)
        for one in modules
        if one.updates[0] is not None
    ]
    joined = [
        ModuleUpdates(one.name, one.kind, one.n_out, one.n_in, (*one.updates, zeros))
        for one, zeros in zip(modules, blank, strict=True)
    ]
    found = merge(method, parameters, joined, [1.0] * (n_models + 1))
    assert all(bool(update.isfinite().all()) for update in found.values())


# --- through files ---------------------------------------------------------------------------------------------------


@pytest.fixture
def base(tmp_path: Path) -> LocalCheckpoint:
    return write_checkpoint(tmp_path / "base", draw_base())


@every_method
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_number_of_threads_does_not_show_and_16_bits_are_read(
    method: str, parameters: dict[str, Any], dtype: torch.dtype, base: LocalCheckpoint, tmp_path: Path
) -> None:
    is_linearized = method == "linearized_lora"
    start = as_stored(draw_modules(9), dtype)
    adapters = [
        write_adapter(
            tmp_path / f"{index}", as_stored(draw_modules(index), dtype), start=start if is_linearized else None
        )
        for index in range(3)
    ]
    n_before = torch.get_num_threads()
    digests = []
    for n_threads in (1, 3):
        torch.set_num_threads(n_threads)
        merged = AdapterMerge(method, parameters)(base, adapters, tmp_path / f"out-{n_threads}")
        digests.append(merged.manifest.digest)
    torch.set_num_threads(n_before)
    assert digests[0] == digests[1]


def as_stored(modules: dict[str, Lora], dtype: torch.dtype) -> dict[str, Lora]:
    """Return factors in the dtype of a file."""
    return {name: Lora(one.a.to(dtype), one.b.to(dtype), one.is_embedding) for name, one in modules.items()}
