"""KnOTS and core space: lossless, linear merges equal to dense ones, any method inside."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from app.domain.catalog import load_catalog
from app.domain.checkpoints import LocalCheckpoint
from app.domain.errors import InvalidParameters
from tests.workers.adapter_files import AdapterMerge, read_fused
from tests.workers.files import write_checkpoint
from tests.workers.peft_folders import draw_base, draw_modules, fuse, write_adapter
from workers.adapter_contract import AdapterContext, ModuleUpdates, Update
from workers.adapter_methods import core_space, knots

BASE = draw_base()
METHODS = {"knots": knots.merge, "core_space": core_space.merge}
LINEAR = {"merge": {"method": "task_arithmetic", "parameters": {"scaling_coefficient": 0.4}}}
both = pytest.mark.parametrize("method", sorted(METHODS))
DENSE = [card for card in load_catalog().methods if card.produces == "dense" and card.max_models is None]
INSIDE = [card.name for card in DENSE if card.data == "none" or card.learned == "coefficients"]


@pytest.fixture
def base(tmp_path: Path) -> LocalCheckpoint:
    return write_checkpoint(tmp_path / "base", BASE)


@both
def test_a_linear_merge_is_the_dense_one(method: str, base: LocalCheckpoint, tmp_path: Path) -> None:
    adapters = [write_adapter(tmp_path / f"{index}", draw_modules(index)) for index in range(3)]
    merged = AdapterMerge(method, LINEAR, weights=(1.0, -0.5, 2.0), space="shared")(base, adapters, tmp_path / "out")
    dense = [fuse(BASE, draw_modules(index)) for index in range(3)]
    for name, tensor in read_fused(merged, base).items():
        start = BASE[name].double().numpy()
        expected = start + 0.4 * sum(
            weight * (model[name] - start) for weight, model in zip((1.0, -0.5, 2.0), dense, strict=True)
        )
        np.testing.assert_allclose(tensor.numpy(), expected, rtol=1e-5, atol=2e-6, err_msg=name)


@both
def test_one_adapter_comes_back(method: str, base: LocalCheckpoint, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", draw_modules(1))
    neutral = load_catalog().method(method).neutral_parameters
    assert neutral is not None
    merged, report = AdapterMerge(method, neutral).report(base, [adapter], tmp_path / "out")
    assert set(report["ranks"].values()) == {3}
    for name, tensor in read_fused(merged, base).items():
        np.testing.assert_allclose(tensor.numpy(), fuse(BASE, draw_modules(1))[name], rtol=1e-5, atol=1e-6)


@both
@pytest.mark.parametrize("inside", INSIDE)
def test_any_method_runs_inside(method: str, inside: str, base: LocalCheckpoint, tmp_path: Path) -> None:
    adapters = [write_adapter(tmp_path / f"{index}", draw_modules(index)) for index in range(2)]
    learned = load_catalog().method(inside).learned
    merge = {"method": inside, "parameters": {} if learned is None else {learned: {"*": [0.3, 0.4]}}}
    merged = AdapterMerge(method, {"merge": merge})(base, adapters, tmp_path / "out")
    again = AdapterMerge(method, {"merge": merge})(base, adapters, tmp_path / "again")
    assert merged.manifest.digest == again.manifest.digest
    assert all(bool(tensor.isfinite().all()) for tensor in read_fused(merged, base).values())


@pytest.mark.parametrize("method", [*METHODS, "linearized_lora", "peru_fft", "tall_mask", "surgery", "surgery_v2"])
@pytest.mark.parametrize("inside", [card.name for card in DENSE if card.data != "none"])
def test_no_method_that_learns_runs_inside_without_what_it_learned(method: str, inside: str) -> None:
    name = next(iter(load_catalog().method(method).nested))
    with pytest.raises(InvalidParameters, match=f"{inside} learns from data, and inside {method}"):
        load_catalog().check(method, {name: {"method": inside}}, has_base_model=True, weights=[1.0, 1.0])


@both
def test_adapters_of_zeros_and_of_some_modules_are_no_trouble(
    method: str, base: LocalCheckpoint, tmp_path: Path
) -> None:
    zeros = {
        name: type(lora)(lora.a, torch.zeros_like(lora.b), lora.is_embedding) for name, lora in draw_modules(0).items()
    }
    adapters = [
        write_adapter(tmp_path / "zeros", zeros),
        write_adapter(tmp_path / "some", {"model.dense": draw_modules(1)["model.dense"]}),
    ]
    merged = AdapterMerge(method, LINEAR)(base, adapters, tmp_path / "out")
    expected = fuse(BASE, {"model.dense": draw_modules(1)["model.dense"]}, scaling=2 * 0.4)
    for name, tensor in read_fused(merged, base).items():
        np.testing.assert_allclose(tensor.numpy(), expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


# --- against references in float64, with a stand-in for the method inside ------------------------------------------


def _larger(models: Any) -> dict[str, Tensor]:
    """Keep of each entry the one of larger magnitude: not linear, and the same for any sign of the basis."""
    names = models[0]
    stacked = {name: torch.stack([model[name] for model in models]) for name in names}
    return {name: value.gather(0, value.abs().argmax(0, keepdim=True))[0] for name, value in stacked.items()}


def _draw(seed: int, n_models: int, n_out: int, n_in: int, rank: int) -> ModuleUpdates:
    generator = torch.Generator().manual_seed(seed)
    updates = tuple(
        Update(torch.randn(rank, n_in, generator=generator), torch.randn(n_out, rank, generator=generator), 0.5 + index)
        for index in range(n_models)
    )
    return ModuleUpdates("w", "linear", n_out, n_in, updates)


def _dense(module: ModuleUpdates) -> list[NDArray[np.float64]]:
    return [one.scaling * one.b.double().numpy() @ one.a.double().numpy() for one in module.updates if one is not None]


def _run(method: str, module: ModuleUpdates) -> NDArray[np.float64]:
    weights = (1.0,) * len(module.updates)
    context = AdapterContext(weights, 0, tuple("k" for _ in weights), _larger)
    result = METHODS[method].merge([module], METHODS[method].parameters(), context)["w"]
    return (result.b @ result.a).numpy()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 999), n_models=st.integers(1, 4), n_out=st.integers(3, 8), n_in=st.integers(3, 8),
    rank=st.integers(1, 2),
)  # fmt: skip
def test_knots_is_the_decomposition_of_all_updates(seed: int, n_models: int, n_out: int, n_in: int, rank: int) -> None:
    module = _draw(seed, n_models, n_out, n_in, rank)
    u, sigma, vt = np.linalg.svd(np.concatenate(_dense(module), axis=1), full_matrices=False)
    kept = sigma > 1e-5 * sigma[0]
    parts = np.split((sigma[:, None] * vt)[kept], n_models, axis=1)
    largest = np.argmax(np.abs(np.stack(parts)), axis=0)
    merged = np.take_along_axis(np.stack(parts), largest[None], axis=0)[0]
    np.testing.assert_allclose(_run("knots", module), u[:, kept] @ merged, rtol=1e-6, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 999), n_models=st.integers(1, 4), n_out=st.integers(3, 8), n_in=st.integers(3, 8),
    rank=st.integers(1, 2),
)  # fmt: skip
def test_core_space_merges_between_the_bases_of_the_factors(
    seed: int, n_models: int, n_out: int, n_in: int, rank: int
) -> None:
    module = _draw(seed, n_models, n_out, n_in, rank)
    found = [one for one in module.updates if one is not None]
    u, s, _ = np.linalg.svd(
        np.concatenate([one.scaling * one.b.double().numpy() for one in found], axis=1), full_matrices=False
    )
    v, t, _ = np.linalg.svd(np.concatenate([one.a.double().numpy().T for one in found], axis=1), full_matrices=False)
    u, v = u[:, s > 1e-5 * s[0]], v[:, t > 1e-5 * t[0]]
    cores = np.stack([u.T @ dense @ v for dense in _dense(module)])
    merged = np.take_along_axis(cores, np.argmax(np.abs(cores), axis=0)[None], axis=0)[0]
    np.testing.assert_allclose(_run("core_space", module), u @ merged @ v.T, rtol=1e-6, atol=1e-6)
