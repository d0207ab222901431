"""Linearized LoRA: folding equals the jvp, merging equals averaging of folded models, other starts are refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp

from app.domain.checkpoints import LocalCheckpoint
from app.domain.errors import IncompatibleCheckpoints, InvalidParameters
from tests.workers.adapter_files import AdapterMerge, read_fused
from tests.workers.files import write_checkpoint
from tests.workers.peft_folders import ALPHA, RANK, Lora, draw_base, draw_modules, write_adapter
from workers.numerics import thin_products

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own jvp uses it
BASE = draw_base()
SCALING = ALPHA / RANK
START = {"model.dense": draw_modules(7)["model.dense"], "model.square": draw_modules(7)["model.square"]}
ZERO_START = {name: Lora(lora.a, torch.zeros_like(lora.b)) for name, lora in START.items()}
ONE = {"method": "task_arithmetic", "parameters": {"scaling_coefficient": 1.0}}


@pytest.fixture
def base(tmp_path: Path) -> LocalCheckpoint:
    return write_checkpoint(tmp_path / "base", BASE)


def near(start: dict[str, Lora], seed: int) -> dict[str, Lora]:
    moved = draw_modules(seed)
    return {name: Lora(lora.a + 0.1 * moved[name].a, lora.b + 0.1 * moved[name].b) for name, lora in start.items()}


def write(folder: Path, start: dict[str, Lora], seed: int) -> LocalCheckpoint:
    return write_adapter(folder, near(start, seed), start=start)


class Adapted(nn.Module):
    """A LoRA linear layer, in float64."""

    def __init__(self, weight: Tensor, a: Tensor, b: Tensor) -> None:
        super().__init__()
        self.weight = weight
        self.a, self.b = nn.Parameter(a), nn.Parameter(b)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T + SCALING * (x @ self.a.T) @ self.b.T


def _jvp(run: Callable[..., Tensor], at: tuple[Tensor, ...], along: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    value, change = jvp(run, at, along)[:2]
    return value, change


@pytest.mark.parametrize("n_zeros", [0, 15])
def test_the_fold_is_the_jvp(n_zeros: int) -> None:
    generator = torch.Generator().manual_seed(3)
    weight, a, b, a0, b0, x = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((5, 7), (3, 7), (5, 3), (3, 7), (5, 3), (11, 7))
    )
    b0.view(-1)[:n_zeros] = 0.0  # all of it, as PEFT starts, or nothing
    layer = Adapted(weight, a0, b0)

    def run(*factors: Tensor) -> Tensor:
        outputs: Tensor = functional_call(layer, dict(zip(("a", "b"), factors, strict=True)), (x,))
        return outputs

    y0, change = _jvp(run, (a0, b0), (a - a0, b - b0))
    folded = x @ (weight + SCALING * thin_products.linearize(a, b, a0, b0)).T
    torch.testing.assert_close(folded, y0 + change, rtol=1e-10, atol=1e-10)
    left, right = thin_products.expand(a, b, a0, b0)
    torch.testing.assert_close(right @ left, thin_products.linearize(a, b, a0, b0), rtol=1e-10, atol=1e-10)


def test_a_whole_net_with_folded_layers_is_the_linearized_net() -> None:
    generator = torch.Generator().manual_seed(4)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    layers = [(draw(6, 6), draw(2, 6), draw(6, 2), draw(2, 6), draw(6, 2)) for _ in range(3)]
    x = y = draw(9, 6)
    for weight, a, b, a0, b0 in layers:
        layer = Adapted(weight, a0, b0)

        def run(*factors: Tensor, layer: nn.Module = layer, at: Tensor = x) -> Tensor:
            outputs: Tensor = functional_call(layer, dict(zip(("a", "b"), factors, strict=True)), (at,))
            return outputs

        out, change = _jvp(run, (a0, b0), (a - a0, b - b0))
        x = torch.tanh(out + change)
        y = torch.tanh(y @ (weight + SCALING * thin_products.linearize(a, b, a0, b0)).T)
    torch.testing.assert_close(y, x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("start", [START, ZERO_START], ids=["any start", "as PEFT starts"])
def test_one_adapter_folds_to_what_it_stands_for(start: dict[str, Lora], base: LocalCheckpoint, tmp_path: Path) -> None:
    adapter = write(tmp_path / "adapter", start, 1)
    merged, report = AdapterMerge("linearized_lora", {"merge": ONE}).report(base, [adapter], tmp_path / "out")
    assert set(report["ranks"].values()) == {RANK if start is ZERO_START else 2 * RANK}
    expected = read_fused(adapter, base)
    for name, tensor in read_fused(merged, base).items():
        np.testing.assert_allclose(tensor.numpy(), expected[name].numpy(), rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("start", [START, ZERO_START], ids=["any start", "as PEFT starts"])
def test_merging_then_folding_is_folding_then_averaging(
    start: dict[str, Lora], base: LocalCheckpoint, tmp_path: Path
) -> None:
    adapters = [write(tmp_path / f"{index}", start, index) for index in range(3)]
    merged = AdapterMerge("linearized_lora", {"merge": {"method": "average"}})(base, adapters, tmp_path / "out")
    dense = [read_fused(adapter, base) for adapter in adapters]
    for name, tensor in read_fused(merged, base).items():
        mean = torch.stack([model[name].double() for model in dense]).mean(0)
        np.testing.assert_allclose(tensor.numpy(), mean.numpy(), rtol=1e-5, atol=1e-6, err_msg=name)


def test_scaling_zero_gives_the_start(base: LocalCheckpoint, tmp_path: Path) -> None:
    adapters = [write(tmp_path / f"{index}", START, index) for index in range(2)]
    none = {"merge": {"method": "task_arithmetic", "parameters": {"scaling_coefficient": 0.0}}}
    merged = read_fused(AdapterMerge("linearized_lora", none)(base, adapters, tmp_path / "out"), base)
    lora = START["model.dense"]
    expected = BASE["model.dense.weight"].double() + SCALING * lora.b.double() @ lora.a.double()
    np.testing.assert_allclose(merged["model.dense.weight"].numpy(), expected.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("inside", ["average", "task_arithmetic", "ties", "breadcrumbs"])
def test_the_methods_of_the_paper_run_inside(inside: str, base: LocalCheckpoint, tmp_path: Path) -> None:
    adapters = [write(tmp_path / f"{index}", ZERO_START, index) for index in range(2)]
    merged, report = AdapterMerge("linearized_lora", {"merge": {"method": inside}}).report(
        base, adapters, tmp_path / "out"
    )
    assert set(report["ranks"].values()) == {RANK}
    assert not torch.equal(read_fused(merged, base)["model.dense.weight"], BASE["model.dense.weight"])


def test_another_start_is_refused_and_added_up_in_the_dense_space(base: LocalCheckpoint, tmp_path: Path) -> None:
    other = {name: Lora(lora.a + 1e-3, lora.b) for name, lora in ZERO_START.items()}
    adapters = [write(tmp_path / "one", ZERO_START, 1), write(tmp_path / "other", other, 2)]
    with pytest.raises(IncompatibleCheckpoints, match=r"models\[1\] does not begin at the same φ₀.*'dense_space'"):
        AdapterMerge("linearized_lora")(base, adapters, tmp_path / "refused")
    parameters: dict[str, Any] = {"space": "dense_space", "merge": {"method": "average"}}
    merged, report = AdapterMerge("linearized_lora", parameters).report(base, adapters, tmp_path / "out")
    assert set(report["ranks"].values()) == {2 * RANK}
    dense = [read_fused(adapter, base) for adapter in adapters]
    for name, tensor in read_fused(merged, base).items():
        mean = (dense[0][name].double() + dense[1][name].double()) / 2
        np.testing.assert_allclose(tensor.numpy(), mean.numpy(), rtol=1e-5, atol=1e-6, err_msg=name)


def test_the_dense_space_takes_linear_combinations_only(base: LocalCheckpoint, tmp_path: Path) -> None:
    adapters = [write(tmp_path / f"{index}", START, index) for index in range(2)]
    parameters = {"space": "dense_space", "merge": {"method": "ties"}}
    with pytest.raises(InvalidParameters, match="must be a linear combination"):
        AdapterMerge("linearized_lora", parameters)(base, adapters, tmp_path / "out")


def test_plain_adapters_are_refused(base: LocalCheckpoint, tmp_path: Path) -> None:
    adapters = [write_adapter(tmp_path / "plain", draw_modules(1))]
    with pytest.raises(IncompatibleCheckpoints, match=r"has no start \(params0\)"):
        AdapterMerge("linearized_lora")(base, adapters, tmp_path / "out")
