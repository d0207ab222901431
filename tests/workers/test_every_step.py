"""The laws that hold for every transform and post-step, through the pipeline that jobs run.

T2 models equal to the base give the base; T3 the order of models does not matter; T5 what is not merged stays; T6
names, shapes and dtypes are kept; T7 neither pieces, nor shards, nor threads, nor parts show in the bytes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from app.domain.catalog import StepCard, load_catalog
from app.domain.checkpoints import LocalCheckpoint
from app.domain.parameter_checks import fill_defaults
from app.domain.recipes import PinnedStep
from tests.workers.files import FileMerge, read_tensors, write_checkpoint
from tests.workers.models import draw_normal
from tests.workers.splitting import SplitMerge

PARAMETERS: Mapping[str, Sequence[Mapping[str, Any]]] = {  # beside the defaults
    "transforms/awd": [{"scope": "tensor"}, {"scope": "row"}],
    "transforms/ties": [{"trim_scope": "tensor", "vote": "weighted"}],
    "post_steps/lines": [{"first": 0.3}],
    "post_steps/svc": [{"floor": 0.1, "conv_as_matrix": True}],
}
STEPS = [
    (kind, card, values)
    for kind in ("transforms", "post_steps")
    for card in getattr(load_catalog(), kind)
    for values in ({}, *PARAMETERS[f"{kind}/{card.name}"])
]
every_step = pytest.mark.parametrize(
    "step", STEPS, ids=["-".join((kind, card.name, *map(str, values.values()))) for kind, card, values in STEPS]
)
Step = tuple[str, StepCard, Mapping[str, Any]]
Tensors = dict[str, Tensor]


def draw(n_models: int = 3) -> tuple[Tensors, list[Tensors]]:
    """Return a base and models with two blocks, of which the second holds more than sums take in one go."""
    base, models = draw_normal(5, n_models)
    generator = torch.Generator().manual_seed(5)
    for tensors in (base, *models):
        tensors["layers.0.w"] = torch.randn(37, 61, generator=generator)
        tensors["layers.1.w"] = torch.randn(7, 1301, generator=generator)
    return base, models


def write(
    folder: Path, base: Tensors, models: Sequence[Tensors], *, n_shards: int = 1
) -> tuple[LocalCheckpoint, list[LocalCheckpoint]]:
    """Write the base and the models."""
    base_at, *models_at = [
        write_checkpoint(folder / f"checkpoint-{index}", tensors, n_shards=n_shards)
        for index, tensors in enumerate((base, *models))
    ]
    return base_at, models_at


def merge_with(step: Step, method: str = "task_arithmetic", **how: Any) -> FileMerge:
    """Return a merge by a method with one step."""
    kind, card, values = step
    pinned = PinnedStep(name=card.name, version=card.version, parameters=fill_defaults(card.parameters, values))
    placed: dict[str, Any] = {kind: (pinned,)}
    return FileMerge(method, **placed, **how)


def test_every_step_is_tried_with_other_parameters_too() -> None:
    known = {f"{kind}/{card.name}" for kind, card, _ in STEPS}
    assert known == set(PARAMETERS)


@every_step
@pytest.mark.parametrize("method", ["average", "ties", "tsv_m"])
def test_t7_neither_pieces_nor_shards_nor_threads_show(step: Step, method: str, tmp_path: Path) -> None:
    base, models = write(tmp_path, *draw())
    whole = merge_with(step, method)(base, models, tmp_path / "whole")
    for index, (threads, chunk, shard) in enumerate([(1, 61, 10**9), (3, 997, 9_000), (2, 5000, 999)]):
        cut = merge_with(step, method, threads=threads, chunk_elements=chunk, shard_bytes=shard)
        assert cut(base, models, tmp_path / f"cut-{index}").weights_digest == whole.weights_digest


@every_step
def test_t7_how_the_inputs_are_sharded_does_not_show(step: Step, tmp_path: Path) -> None:
    base, models = write(tmp_path / "one", *draw())
    other_base, others = write(tmp_path / "three", *draw(), n_shards=3)
    whole = merge_with(step)(base, models, tmp_path / "whole")
    assert merge_with(step)(other_base, others, tmp_path / "cut").weights_digest == whole.weights_digest


@every_step
def test_t7_parts_give_the_same_files(step: Step, tmp_path: Path) -> None:
    base, models = write(tmp_path, *draw())
    merge = merge_with(step, shard_bytes=9_000, chunk_elements=300)
    whole = merge(base, models, tmp_path / "whole")
    parts, _, _ = SplitMerge(merge, 3)(base, models, tmp_path / "parts")
    assert parts.digest == whole.digest


@every_step
@pytest.mark.parametrize("method", ["average", "ties"])
def test_t3_the_order_of_models_does_not_show(step: Step, method: str, tmp_path: Path) -> None:
    base, models = write(tmp_path, *draw())
    merge_with(step, method)(base, models, tmp_path / "one")
    merge_with(step, method)(base, [models[place] for place in (2, 0, 1)], tmp_path / "other")
    one, other = read_tensors(tmp_path / "one"), read_tensors(tmp_path / "other")
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-6, atol=1e-6)


@every_step
def test_t2_models_equal_to_the_base_give_the_base_to_the_bit(step: Step, tmp_path: Path) -> None:
    base, models = draw(2)
    base_at, models_at = write(tmp_path, base, [base for _ in models])
    merged = merge_with(step)(base_at, models_at, tmp_path / "out")
    assert merged.weights_digest == base_at.manifest.weights_digest


@every_step
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_t5_and_t6_what_is_not_merged_stays_and_names_shapes_and_dtypes_are_kept(
    step: Step, dtype: torch.dtype, tmp_path: Path
) -> None:
    base, *models = ({name: tensor.to(dtype) for name, tensor in one.items()} for one in (draw()[0], *draw()[1]))
    for tensors in (base, *models):
        tensors["positions"] = torch.arange(7)
    base_at, models_at = write(tmp_path, base, models)
    merge_with(step, exclude=("bias",))(base_at, models_at, tmp_path / "out")
    found = read_tensors(tmp_path / "out")
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in found.items()} == {
        name: (tensor.shape, tensor.dtype) for name, tensor in base.items()
    }
    assert all(torch.equal(found[name], base[name]) for name in ("positions", "bias"))
