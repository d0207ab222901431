"""An adapter read as the dense model it makes of its base: every kind of module, any cut, PEFT's many names."""

from collections.abc import Iterator, Mapping
from math import prod, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from app.domain.adapters import as_dense, parts_of, place
from app.domain.checkpoints import CheckpointKind, LocalCheckpoint
from app.domain.errors import AdapterUnsupported, CheckpointInvalid, IncompatibleCheckpoints
from tests.workers.files import ignore, write_checkpoint
from tests.workers.peft_folders import (
    ALPHA,
    RANK,
    Lora,
    draw_base,
    draw_modules,
    fuse,
    name_factors,
    write_adapter,
    write_folder,
)
from workers.checkpoints.adapters import AdapterReader
from workers.checkpoints.reader import TensorReader
from workers.numerics.thin_products import multiply_run
from workers.pipelines.importing import import_checkpoint

BASE = draw_base()
MODULES = draw_modules(1)


@pytest.fixture
def base(tmp_path: Path) -> LocalCheckpoint:
    return write_checkpoint(tmp_path / "base", BASE)


def read(adapter: LocalCheckpoint, base: LocalCheckpoint, *, step: int = 10_000) -> dict[str, Tensor]:
    view = as_dense(adapter.manifest, base.manifest)
    with TensorReader(base) as files, AdapterReader(adapter, files) as reader:
        tensors: dict[str, Tensor] = {}
        for spec in view.tensors:
            out = torch.empty(spec.n_elements)
            for offset in range(0, spec.n_elements, step):
                assert reader.read_floats(spec, offset, out[offset : offset + step])
            tensors[spec.name] = out.view(spec.shape)
    return tensors


def assert_is(found: Mapping[str, Tensor], expected: Mapping[str, Any]) -> None:
    assert sorted(found) == sorted(expected)
    for name, tensor in found.items():
        # one rounding, of the sum in float64
        np.testing.assert_array_equal(tensor.numpy(), np.asarray(expected[name]).astype(np.float32), err_msg=name)


def test_every_kind_of_module_is_added_to_its_tensor(base: LocalCheckpoint, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", MODULES)
    assert adapter.manifest.kind is CheckpointKind.ADAPTER
    assert_is(read(adapter, base), fuse(BASE, MODULES))


@pytest.mark.parametrize("step", [1, 2, 5, 7, 13])
def test_no_cut_shows_in_the_bits(step: int, base: LocalCheckpoint, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", MODULES)
    whole = read(adapter, base)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in read(adapter, base, step=step).items())


def test_a_square_weight_is_turned_where_the_config_says_so(base: LocalCheckpoint, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", MODULES, fan_in_fan_out=True)
    assert_is(read(adapter, base), fuse(BASE, MODULES, turned=("model.square",)))


def test_rslora_and_patterns_scale_each_module_by_its_own(base: LocalCheckpoint, tmp_path: Path) -> None:
    dense, square = draw_modules(2, rank=2)["model.dense"], MODULES["model.square"]
    adapter = write_adapter(
        tmp_path / "adapter",
        {"model.dense": dense, "model.square": square},
        use_rslora=True,
        rank_pattern={"dense": 2},
        alpha_pattern={"model.square": 5},
    )
    expected = fuse(BASE, {"model.dense": dense}, scaling=ALPHA / sqrt(2))
    square_alone = fuse(BASE, {"model.square": square}, scaling=5 / sqrt(RANK))
    assert_is(read(adapter, base), expected | {"model.square.weight": square_alone["model.square.weight"]})


def test_whole_tensors_stand_in_the_base_s_place(base: LocalCheckpoint, tmp_path: Path) -> None:
    norm, bias, scale = torch.arange(5.0), torch.arange(5.0) - 7, torch.tensor(4.5)
    full = {
        "model.norm.modules_to_save.weight": norm,
        "model.dense.base_layer.bias": bias,
        "model.scale": scale,
    }
    adapter = write_adapter(tmp_path / "adapter", {"model.dense": MODULES["model.dense"]}, full=full)
    replaced = {"model.norm.weight": norm, "model.dense.bias": bias, "model.scale": scale}
    expected = fuse(BASE | replaced, {"model.dense": MODULES["model.dense"]})
    assert_is(read(adapter, base), expected)


def test_an_update_may_lie_on_a_replaced_weight(base: LocalCheckpoint, tmp_path: Path) -> None:
    weight = torch.ones(11, 6)
    embed = {"model.embed": MODULES["model.embed"]}
    adapter = write_adapter(tmp_path / "adapter", embed, full={"model.embed.base_layer.weight": weight})
    assert_is(read(adapter, base), fuse(BASE | {"model.embed.weight": weight}, embed))


@pytest.mark.parametrize("prefix", ["base_model.model.", ""])
@pytest.mark.parametrize("adapter_name", ["", "default"])
def test_names_with_and_without_prefix_and_adapter(
    prefix: str, adapter_name: str, base: LocalCheckpoint, tmp_path: Path
) -> None:
    tensors = name_factors(MODULES, prefix=prefix, adapter=adapter_name)
    assert_is(read(write_folder(tmp_path / "adapter", tensors), base), fuse(BASE, MODULES))


@pytest.mark.parametrize("module", ["dense", "wrapper.model.dense"])
def test_a_prefix_that_only_one_side_has_is_bridged(module: str, base: LocalCheckpoint, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", {module: MODULES["model.dense"]})
    assert_is(read(adapter, base), fuse(BASE, {"model.dense": MODULES["model.dense"]}))


def test_several_places_for_a_module_are_named(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", {"a.dense.weight": torch.ones(5, 7), "b.dense.weight": torch.ones(5, 7)})
    adapter = write_adapter(tmp_path / "adapter", {"dense": MODULES["model.dense"]})
    with pytest.raises(
        IncompatibleCheckpoints, match=r"2 tensors of the base model: 'a.dense.weight', 'b.dense.weight'"
    ):
        place(adapter.manifest, base.manifest)


def test_a_module_without_a_place_is_named(base: LocalCheckpoint, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", {"model.missing": MODULES["model.dense"]})
    with pytest.raises(IncompatibleCheckpoints, match=r"'model.missing'.*no tensor 'model.missing.weight'"):
        place(adapter.manifest, base.manifest)


def test_an_update_of_another_shape_is_named(base: LocalCheckpoint, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", {"model.dense": MODULES["model.square"]})
    with pytest.raises(IncompatibleCheckpoints, match=r"\[6, 6\], and tensor 'model.dense.weight'.*\[5, 7\]"):
        place(adapter.manifest, base.manifest)


def test_an_update_of_one_of_two_tied_tensors_is_refused(base: LocalCheckpoint, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", {"model.embed": MODULES["model.embed"]})
    tied = base.manifest.model_copy(update={"tied": (("model.embed.weight", "lm_head.weight"),)})
    with pytest.raises(IncompatibleCheckpoints, match=r"ties 'model.embed.weight' to lm_head.weight.*untied"):
        place(adapter.manifest, tied)


def test_a_linearized_adapter_stands_for_its_expansion_not_for_its_product(
    base: LocalCheckpoint, tmp_path: Path
) -> None:
    """W + s (B A₀ + B₀ (A − A₀)); with B₀ = 0, as PEFT starts, A does not matter at all."""
    module = {"model.dense": MODULES["model.dense"]}
    start = {"model.dense": draw_modules(9)["model.dense"]}
    zero = {"model.dense": Lora(start["model.dense"].a, torch.zeros(5, RANK))}
    for name, begun in (("full", start), ("zero", zero)):
        a, b, a0, b0 = (
            factor.double().numpy()
            for factor in (
                module["model.dense"].a,
                module["model.dense"].b,
                begun["model.dense"].a,
                begun["model.dense"].b,
            )
        )
        expected = BASE["model.dense.weight"].double().numpy() + ALPHA / RANK * (b @ a0 + b0 @ (a - a0))
        adapter = write_adapter(tmp_path / name, module, start=begun)
        assert parts_of(adapter.manifest).is_linearized
        found = read(adapter, base)["model.dense.weight"]
        np.testing.assert_allclose(found.numpy(), expected, rtol=2e-7)


def test_fusion_bench_s_linearized_names_are_read(base: LocalCheckpoint, tmp_path: Path) -> None:
    lora, start = MODULES["model.dense"], draw_modules(9)["model.dense"]
    at = "base_model.model.model.dense"
    theirs = write_folder(
        tmp_path / "theirs",
        {
            f"{at}.model.lora_A.default.weight": lora.a,
            f"{at}.model.lora_B.default.weight": lora.b,
            f"{at}.params0_values.2": start.a,
            f"{at}.params0_values.3": start.b,
        },
        file="linearized_adapter_model.safetensors",
    )
    ours = write_adapter(tmp_path / "ours", {"model.dense": lora}, start={"model.dense": start})
    assert torch.equal(read(theirs, base)["model.dense.weight"], read(ours, base)["model.dense.weight"])


def test_integers_are_read_from_the_base(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", BASE | {"model.positions": torch.arange(7)})
    adapter = write_adapter(tmp_path / "adapter", MODULES)
    spec = next(spec for spec in as_dense(adapter.manifest, base.manifest).tensors if spec.name == "model.positions")
    out = bytearray(16)
    with TensorReader(base) as files, AdapterReader(adapter, files) as reader:
        reader.read_bytes(spec, 8, memoryview(out))
    assert np.frombuffer(bytes(out), dtype=np.int64).tolist() == [1, 2]


def test_a_nan_in_a_factor_is_found_where_it_shows(base: LocalCheckpoint, tmp_path: Path) -> None:
    lora = MODULES["model.dense"]
    broken = Lora(lora.a.index_fill(0, torch.tensor([0]), float("nan")), lora.b)
    adapter = write_adapter(tmp_path / "adapter", {"model.dense": broken})
    spec = next(spec for spec in base.manifest.tensors if spec.name == "model.dense.weight")
    with TensorReader(base) as files, AdapterReader(adapter, files) as reader:
        assert not reader.read_floats(spec, 0, torch.empty(35))


def _faulty() -> Iterator[Any]:
    lora = MODULES["model.dense"]
    at = "base_model.model.model.dense.lora_"
    yield pytest.param(
        {f"{at}A.weight": lora.a}, {}, CheckpointInvalid, "expected one lora_A and one lora_B", id="half"
    )
    yield pytest.param({"model.norm.weight": torch.ones(5)}, {}, CheckpointInvalid, "no lora_A among them", id="none")
    pair = {f"{at}A.weight": lora.a, f"{at}B.weight": lora.b}
    yield pytest.param(pair, {"r": 8}, CheckpointInvalid, r"A \[3, 7\] and B \[5, 3\].*rank 8", id="rank")
    double = pair | {f"{at}A.other.weight": lora.a.clone()}
    yield pytest.param(double, {}, CheckpointInvalid, "are the same factor", id="two adapters")
    dora = pair | {f"{at}magnitude_vector": torch.ones(5)}
    yield pytest.param(dora, {}, AdapterUnsupported, "DoRA rescales", id="dora")
    yield pytest.param(pair, {"use_dora": True}, AdapterUnsupported, "use_dora", id="dora by config")
    start = pair | {f"params0.{at}A.weight": lora.a.clone()}
    yield pytest.param(start, {}, CheckpointInvalid, "does not have the shapes of its factors", id="half a start")


@pytest.mark.parametrize(("tensors", "config", "error", "words"), list(_faulty()))
def test_what_is_no_adapter_is_refused_at_import(
    tensors: dict[str, Tensor], config: dict[str, Any], error: type[Exception], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        write_folder(tmp_path / "adapter", tensors, **config)


def test_an_adapter_without_its_config_is_refused(tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter", MODULES)
    (tmp_path / "adapter" / "adapter_config.json").unlink()
    with pytest.raises(CheckpointInvalid, match=r"no adapter_config.json beside it"):
        import_checkpoint(tmp_path / "adapter", ignore)


@settings(max_examples=50, deadline=None)
@given(
    rows=st.integers(1, 5), columns=st.integers(1, 9), rank=st.integers(0, 4), seed=st.integers(0, 99), data=st.data()
)
def test_any_run_of_a_product_is_that_run_of_the_whole(
    rows: int, columns: int, rank: int, seed: int, data: st.DataObject
) -> None:
    generator = torch.Generator().manual_seed(seed)
    left, right = torch.randn(rows, rank, generator=generator), torch.randn(rank, columns, generator=generator)
    n = prod((rows, columns))
    offset = data.draw(st.integers(0, n - 1))
    n_elements = data.draw(st.integers(1, n - offset))
    whole = multiply_run(left, right, 0, n)
    assert torch.equal(multiply_run(left, right, offset, n_elements), whole[offset : offset + n_elements])
    np.testing.assert_allclose(
        whole.numpy(), (left.double() @ right.double()).flatten().numpy(), rtol=1e-12, atol=1e-12
    )
