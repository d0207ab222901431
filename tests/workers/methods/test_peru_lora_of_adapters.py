"""PERU-LoRA of adapters: the components come from the factors, and are those of the dense difference."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from app.domain.checkpoints import LocalCheckpoint
from tests.workers.files import FileMerge, write_checkpoint
from tests.workers.multitask import read_tasks
from tests.workers.peft_folders import BASE_SHAPES, Lora, draw_base, draw_modules, fuse, write_adapter
from workers.numerics import low_rank, thin_products
from workers.patches import LowRank

Array = NDArray[np.float64]
BASE = draw_base()
WEIGHTS = (1.0, 0.5, 2.0)
MATRICES = ["model.conv.weight", "model.dense.weight", "model.embed.weight", "model.square.weight"]


def cut(matrix: Array, rank: int, energy: float = 1.0) -> Array:
    """Return the best approximation of a rank, by numpy."""
    u, sigma, vt = np.linalg.svd(matrix, full_matrices=False)
    needed = int((np.cumsum(sigma**2) < energy * np.sum(sigma**2)).sum()) + 1 if energy < 1 else len(sigma)
    kept = min(rank, needed)
    found: Array = (u[:, :kept] * sigma[:kept]) @ vt[:kept]
    return found


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 999), rows=st.integers(1, 12), columns=st.integers(1, 12), inner=st.integers(1, 15),
    rank=st.integers(1, 8), energy=st.floats(0.1, 1.0),
)  # fmt: skip
def test_a_product_is_truncated_as_the_matrix_it_makes(  # noqa: PLR0913 (a shape and what is kept of it)
    seed: int, rows: int, columns: int, inner: int, rank: int, energy: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(inner, columns, generator=generator, dtype=torch.float64)
    b = torch.randn(rows, inner, generator=generator, dtype=torch.float64)
    found = low_rank.truncate_product(LowRank(a, b), rank=rank, energy=energy)
    dense = low_rank.truncate(b @ a, rank=rank, energy=energy)
    assert found.rank == min(dense.rank, inner)
    np.testing.assert_allclose((found.b @ found.a).numpy(), cut((b @ a).numpy(), rank, energy), rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(found.b.norm(dim=0), found.a.norm(dim=1), rtol=1e-5, atol=1e-6)  # balanced


def test_factors_that_depend_on_each_other_have_no_more_components_than_their_product() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(3, 40, generator=generator).double(), torch.randn(30, 3, generator=generator).double()
    twice = LowRank(torch.cat([a, a, a]), torch.cat([b, -0.3 * b, 0.1 * b], dim=1))
    found = low_rank.truncate_product(twice, rank=9)
    assert found.rank == 3
    torch.testing.assert_close((found.b @ found.a).double(), 0.8 * b @ a, rtol=1e-5, atol=1e-5)


def test_a_product_of_zeros_or_of_nothing_has_rank_0() -> None:
    for rank in (0, 2):
        zeros = LowRank(torch.randn(rank, 7), torch.zeros(5, rank))
        found = low_rank.truncate_product(zeros, rank=4)
        assert (found.rank, tuple(found.a.shape), tuple(found.b.shape)) == (0, (0, 7), (5, 0))


def test_a_decomposed_product_is_the_product() -> None:
    a, b = torch.randn(4, 9, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    u, sigma, vt = thin_products.decompose(a, b)
    torch.testing.assert_close((u * sigma) @ vt, b @ a)
    torch.testing.assert_close(u.mT @ u, torch.eye(4, dtype=torch.float64))
    assert sigma.tolist() == sorted(sigma.tolist(), reverse=True)


# --- through files: each kind of module, and how the base stores it ------------------------------------------------


@pytest.fixture
def base(tmp_path: Path) -> LocalCheckpoint:
    return write_checkpoint(tmp_path / "base", BASE)


def write_adapters(folder: Path) -> list[LocalCheckpoint]:
    return [write_adapter(folder / f"adapter-{index}", draw_modules(index)) for index in range(3)]


def changes_of(name: str) -> list[Array]:
    """Return what each adapter adds to a matrix of the base, as rows of its first axis."""
    fused = [fuse(BASE, draw_modules(index))[name] for index in range(3)]
    return [(model - BASE[name].double().numpy()).reshape(BASE_SHAPES[name][0], -1) for model in fused]


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("parameters", [{"rank": 1}, {"rank": 2}, {"rank": 2, "energy": 0.7}])
@pytest.mark.parametrize("mode", ["per_adapter", "residual"])
def test_tasks_have_the_components_of_what_the_shared_model_lacks(
    name: str, parameters: dict[str, Any], mode: str, base: LocalCheckpoint, tmp_path: Path
) -> None:
    merge = FileMerge("peru_lora", {**parameters, "mode": mode, "scaling_coefficient": 0.4}, weights=WEIGHTS)
    manifest = merge(base, write_adapters(tmp_path), tmp_path / "out")
    changes = changes_of(name)
    start = BASE[name].double().numpy().reshape(len(changes[0]), -1)
    shared = 0.4 * sum(weight * change for weight, change in zip(WEIGHTS, changes, strict=True))
    shared = shared if mode == "residual" else np.zeros_like(start)
    pays = min(parameters["rank"], *start.shape) * sum(start.shape) < start.size
    for task, change in zip(read_tasks(tmp_path / "out", manifest), changes, strict=True):
        kept = cut(change - shared, parameters["rank"], parameters.get("energy", 1.0)) if pays else change - shared
        found = task[name].double().numpy().reshape(start.shape)
        np.testing.assert_allclose(found, start + shared + kept, rtol=1e-5, atol=1e-6)


def test_factors_give_what_the_dense_models_that_they_make_give(base: LocalCheckpoint, tmp_path: Path) -> None:
    adapters = write_adapters(tmp_path)
    fused = [
        write_checkpoint(
            tmp_path / f"fused-{index}",
            {name: torch.from_numpy(array).float() for name, array in fuse(BASE, draw_modules(index)).items()},
        )
        for index in range(3)
    ]
    for mode in ("per_adapter", "residual"):
        merge = FileMerge("peru_lora", {"rank": 1, "mode": mode})
        tasks = [
            read_tasks(tmp_path / f"{mode}-{how}", merge(base, models, tmp_path / f"{mode}-{how}"))
            for how, models in (("thin", adapters), ("dense", fused), ("mixed", [*adapters[:2], fused[2]]))
        ]
        for thin, *others in zip(*tasks, strict=True):
            for other in others:
                for name, tensor in thin.items():
                    torch.testing.assert_close(tensor, other[name], rtol=1e-5, atol=2e-6, msg=name)


def test_no_matrix_of_the_size_of_a_module_is_decomposed(
    base: LocalCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a difference was decomposed as a whole")

    monkeypatch.setattr(low_rank, "truncate_changes", refuse)
    for mode in ("per_adapter", "residual"):
        FileMerge("peru_lora", {"rank": 1, "mode": mode})(
            base, write_adapters(tmp_path / mode), tmp_path / f"{mode}-out"
        )


def test_whole_tensors_and_linearized_adapters_are_as_before(base: LocalCheckpoint, tmp_path: Path) -> None:
    whole = {"model.dense.weight": BASE["model.dense.weight"] + 0.1 * torch.randn(5, 7)}
    modules = {name: lora for name, lora in draw_modules(0).items() if name != "model.dense"}
    replaced = write_adapter(tmp_path / "replaced", modules, full=whole)
    linearized = write_adapter(tmp_path / "linearized", draw_modules(1), start=draw_modules(2))
    manifest = FileMerge("peru_lora", {"rank": 2, "mode": "per_adapter"})(
        base, [replaced, linearized], tmp_path / "out"
    )
    first, second = read_tasks(tmp_path / "out", manifest)
    start = BASE["model.dense.weight"].double().numpy()
    expected = start + cut(whole["model.dense.weight"].double().numpy() - start, 2)
    np.testing.assert_allclose(first["model.dense.weight"].double().numpy(), expected, rtol=1e-5, atol=1e-6)
    (a, b), (a0, b0) = (_factors(draw_modules(index)["model.dense"]) for index in (1, 2))
    expected = start + cut(2.0 * (b @ a0 + b0 @ a - b0 @ a0), 2)  # scaling: alpha 6, rank 3
    np.testing.assert_allclose(second["model.dense.weight"].double().numpy(), expected, rtol=1e-5, atol=1e-6)


def _factors(lora: Lora) -> tuple[Array, Array]:
    return lora.a.double().numpy(), lora.b.double().numpy()


def test_an_adapter_that_leaves_a_module_alone_has_no_patch_of_it(base: LocalCheckpoint, tmp_path: Path) -> None:
    some = write_adapter(tmp_path / "some", {"model.dense": draw_modules(0)["model.dense"]})
    manifest = FileMerge("peru_lora", {"rank": 1})(base, [some], tmp_path / "out")
    (task,) = read_tasks(tmp_path / "out", manifest)
    changed = {name for name, tensor in task.items() if not torch.equal(tensor, BASE[name])}
    assert changed == {"model.dense.weight"}


@pytest.mark.parametrize("mode", ["per_adapter", "residual"])
def test_neither_pieces_nor_threads_show(mode: str, base: LocalCheckpoint, tmp_path: Path) -> None:
    adapters = write_adapters(tmp_path)
    digests = [
        [
            file.sha256
            for file in FileMerge("peru_lora", {"rank": 1, "mode": mode}, **cut_)(  # type: ignore[arg-type]
                base, adapters, tmp_path / f"out-{index}"
            ).files
            if file.path.startswith("patches/")
        ]
        for index, cut_ in enumerate(({}, {"threads": 3, "chunk_elements": 5}, {"threads": 1, "shard_bytes": 300}))
    ]
    assert digests[0] == digests[1] == digests[2]
    assert len(digests[0]) == 3
