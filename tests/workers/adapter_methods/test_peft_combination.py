"""PEFT's combinations, each worked out by hand in float64 numpy."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from app.domain.checkpoints import LocalCheckpoint
from app.domain.errors import IncompatibleCheckpoints
from tests.workers.adapter_files import AdapterMerge, read_fused
from tests.workers.files import write_checkpoint
from tests.workers.peft_folders import draw_base, draw_modules, write_adapter

Array = NDArray[np.float64]
BASE = draw_base()
WEIGHTS = (0.7, -0.3)
SCALING = 2.0


@pytest.fixture
def base(tmp_path: Path) -> LocalCheckpoint:
    return write_checkpoint(tmp_path / "base", BASE)


@pytest.fixture
def adapters(tmp_path: Path) -> list[LocalCheckpoint]:
    return [write_adapter(tmp_path / f"adapter-{index}", draw_modules(index)) for index in range(2)]


def prune(tensor: Array, density: float) -> Array:
    kept = np.argsort(-np.abs(tensor).flatten(), kind="stable")[: int(density * tensor.size)]
    mask = np.zeros(tensor.size)
    mask[kept] = 1
    return tensor * mask.reshape(tensor.shape)


def combine(tensors: list[Array], weights: list[float], kind: str, density: float, vote: str) -> Array:
    if kind.startswith(("ties", "magnitude")):
        tensors = [prune(tensor, density) for tensor in tensors]
    if not kind.startswith("ties"):
        return np.asarray(sum(weight * tensor for weight, tensor in zip(weights, tensors, strict=True)))
    counted = [np.sign(tensor) if vote == "frequency" else tensor for tensor in tensors]
    elected = np.where(sum(counted) >= 0, 1, -1)
    masks = [np.sign(tensor) == elected for tensor in tensors]
    total = sum(weight * tensor * mask for weight, tensor, mask in zip(weights, tensors, masks, strict=True))
    return np.asarray(total / np.maximum(sum(mask.astype(float) for mask in masks), 1))


def expected(kind: str, density: float = 0.5, vote: str = "total", rank: int = 3) -> dict[str, Array]:
    merged: dict[str, Array] = {}
    for module in draw_modules(0):
        loras = [draw_modules(index)[module] for index in range(2)]
        factors = [(lora.a.double().numpy().reshape(3, -1), lora.b.double().numpy().reshape(-1, 3)) for lora in loras]
        if kind == "cat":
            update = sum(weight * SCALING * b @ a for weight, (a, b) in zip(WEIGHTS, factors, strict=True))
        elif kind == "svd" or kind.endswith("_svd"):
            dense = [SCALING * b @ a for a, b in factors]
            u, s, vt = np.linalg.svd(combine(dense, list(WEIGHTS), kind, density, vote), full_matrices=False)
            update = u[:, :rank] * s[:rank] @ vt[:rank]
        else:
            products = [weight * SCALING for weight in WEIGHTS]
            signed = [float(np.sign(product) * abs(product) ** 0.5) for product in products]
            a = combine([a for a, _ in factors], signed, kind, density, vote)
            b = combine([b for _, b in factors], [abs(product) ** 0.5 for product in products], kind, density, vote)
            update = b @ a
        name = f"{module}.weight"
        is_turned = module in ("model.embed", "model.turned")
        start = BASE[name].double().numpy()
        merged[name] = start + (update.T if is_turned else update).reshape(start.shape)
    return merged


@pytest.mark.parametrize("kind", ["cat", "svd", "linear", "ties", "ties_svd", "magnitude_prune", "magnitude_prune_svd"])
@pytest.mark.parametrize("vote", ["total", "frequency"])
def test_each_type_is_what_peft_does(
    kind: str, vote: str, base: LocalCheckpoint, adapters: list[LocalCheckpoint], tmp_path: Path
) -> None:
    parameters = {"combination_type": kind, "majority_sign_method": vote}
    merged = AdapterMerge("peft_combination", parameters, WEIGHTS)(base, adapters, tmp_path / "out")
    wanted = expected(kind, vote=vote)
    found = read_fused(merged, base)
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name].numpy(), array, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("kind", ["dare_linear", "dare_ties", "dare_linear_svd", "dare_ties_svd"])
def test_dropping_nothing_is_the_type_without_dropping(
    kind: str, base: LocalCheckpoint, adapters: list[LocalCheckpoint], tmp_path: Path
) -> None:
    plain = {"dare_linear": "linear", "dare_ties": "ties", "dare_linear_svd": "svd", "dare_ties_svd": "ties_svd"}[kind]
    results = [
        read_fused(
            AdapterMerge("peft_combination", {"combination_type": one, "density": 1.0}, WEIGHTS)(
                base, adapters, tmp_path / one
            ),
            base,
        )
        for one in (kind, plain)
    ]
    for name, tensor in results[0].items():
        np.testing.assert_allclose(tensor.numpy(), results[1][name].numpy(), rtol=1e-5, atol=1e-5)


def test_dropped_entries_depend_on_the_seed_and_not_on_the_order(
    base: LocalCheckpoint, adapters: list[LocalCheckpoint], tmp_path: Path
) -> None:
    def merge(seed: int, folder: str, order: int = 1) -> dict[str, Any]:
        parameters = {"combination_type": "dare_linear", "density": 0.5}
        one = AdapterMerge("peft_combination", parameters, WEIGHTS[::order], changes={"seed": seed})
        return read_fused(one(base, adapters[::order], tmp_path / folder), base)

    first, other, turned = merge(1, "first"), merge(2, "other"), merge(1, "turned", -1)
    assert not np.array_equal(first["model.dense.weight"], other["model.dense.weight"])
    np.testing.assert_allclose(first["model.dense.weight"], turned["model.dense.weight"], rtol=1e-5, atol=1e-6)


def test_a_rank_cuts_svd(base: LocalCheckpoint, adapters: list[LocalCheckpoint], tmp_path: Path) -> None:
    parameters = {"combination_type": "svd", "rank": 1}
    merged, report = AdapterMerge("peft_combination", parameters, WEIGHTS).report(base, adapters, tmp_path / "out")
    assert set(report["ranks"].values()) == {1}
    wanted = expected("svd", rank=1)
    for name, array in wanted.items():
        np.testing.assert_allclose(read_fused(merged, base)[name].numpy(), array, rtol=1e-5, atol=1e-5)


def test_factors_of_different_ranks_are_refused(base: LocalCheckpoint, tmp_path: Path) -> None:
    adapters = [
        write_adapter(tmp_path / "a", draw_modules(0)),
        write_adapter(tmp_path / "b", draw_modules(1, rank=2), r=2),
    ]
    with pytest.raises(IncompatibleCheckpoints, match=r"different ranks.*Use cat, svd"):
        AdapterMerge("peft_combination", {"combination_type": "linear"})(base, adapters, tmp_path / "out")
