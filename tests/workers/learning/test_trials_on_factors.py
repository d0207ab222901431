"""LoraHub as its paper composes adapters, against brute force: plain torch on the base with Σ wᵢ Bᵢ times Σ wᵢ Aᵢ."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertModel

from app.domain.catalog import load_catalog
from app.domain.checkpoints import CheckpointKind, LocalCheckpoint
from app.domain.errors import IncompatibleCheckpoints
from app.domain.kind_checks import check_kinds
from app.domain.planning import plan_merge
from app.domain.work import CheckpointOutcome, MergeWork
from tests.workers import peft_folders, tiny_bert
from tests.workers.adapter_files import read_fused
from tests.workers.files import ignore, read_tensors
from tests.workers.learning.world import World, run
from tests.workers.peft_folders import ALPHA, RANK, Lora
from workers.checkpoints.model import Models
from workers.evaluators.text_classification import open_probe
from workers.model_contract import Subject
from workers.pipelines.importing import import_checkpoint

LAYER = "encoder.layer.0"
MODULES = {f"{LAYER}.attention.self.query": (8, 8), f"{LAYER}.attention.self.value": (8, 8)} | {
    f"{LAYER}.intermediate.dense": (12, 8), "embeddings.position_embeddings": (8, 16),
}  # fmt: skip
QUICK: dict[str, Any] = {"budget": 12, "regularization": 0.1}


def draw(seed: int, rank: int = RANK) -> dict[str, Lora]:
    generator = torch.Generator().manual_seed(seed)
    return {
        module: Lora(
            torch.randn(rank, n_in, generator=generator),
            0.3 * torch.randn(n_out, rank, generator=generator),
            is_embedding="embedding" in module,
        )
        for module, (n_out, n_in) in MODULES.items()
    }


@pytest.fixture(scope="module")
def adapted(world: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """The world's base and tasks, with adapters in place of its models."""
    folder = tmp_path_factory.mktemp("adapters")
    models = tuple(peft_folders.write_adapter(folder / f"adapter-{seed}", draw(seed)) for seed in (1, 2))
    return replace(world, models=models)


def in_space(work: MergeWork, space: str = "factors") -> MergeWork:
    return work.model_copy(update={"recipe": work.recipe.model_copy(update={"adapter_space": space})})


def merge(world: World, output: Path, parameters: dict[str, Any]) -> CheckpointOutcome:
    return run(in_space(world.work(output, parameters, method="lorahub")))


def coefficients_in(folder: Path) -> list[float]:
    found: list[float] = json.loads((folder / "coefficients.json").read_text(encoding="utf-8"))["coefficients"]["*"]
    return found


def compose(coefficients: list[float]) -> dict[str, Tensor]:
    """Return s · (Σ wᵢ Bᵢ) (Σ wᵢ Aᵢ) by module, float64, as the base stores it."""
    adapters = [draw(seed) for seed in (1, 2)]
    updates: dict[str, Tensor] = {}
    for module in MODULES:
        a, b = (
            sum(w * getattr(one[module], name).double() for w, one in zip(coefficients, adapters, strict=True))
            for name in ("a", "b")
        )
        update = ALPHA / RANK * (b @ a)
        updates[module] = update.T if "embedding" in module else update
    return updates


def brute_force_loss(world: World, folder: Path, coefficients: list[float]) -> float:
    """Return the objective of coefficients: the mean loss of a model that transformers wrote and loaded again."""
    model = BertModel.from_pretrained(world.base.path)
    with torch.no_grad():
        for module, update in compose(coefficients).items():
            weight = model.get_parameter(f"{module}.weight")
            weight.copy_(weight.double() + update)
    model.save_pretrained(folder)
    tiny_bert.make_tokenizer().save_pretrained(folder)
    losses: list[float] = []
    for task in world.tasks:
        probe = open_probe(Subject(task, tiny_bert.local(folder), world.base), "validation", Models())
        losses.append(torch.cat([probe.losses([index]) for index in range(probe.n_examples)]).mean().item())
    return sum(losses) / len(losses) + 0.1 * sum(map(abs, coefficients)) / len(coefficients)


def test_what_is_tried_is_what_the_composed_factors_make_of_the_base(adapted: World, tmp_path: Path) -> None:
    outcome = merge(adapted, tmp_path / "out", QUICK)
    learned: Any = outcome.report["learned"]
    losses = [point["loss"] for point in learned["losses"]]
    found = coefficients_in(tmp_path / "out")
    assert (len(losses), learned["split"], learned["tasks"][0]["n_examples"]) == (12, "validation", 6)
    assert learned["mean_coefficients"] == found
    assert any(found), "nothing better than the base was found; draw other adapters"
    assert losses[0] == pytest.approx(brute_force_loss(adapted, tmp_path / "base", [0.0, 0.0]), rel=1e-5)
    assert min(losses) == pytest.approx(brute_force_loss(adapted, tmp_path / "composed", found), rel=1e-5)


def test_the_result_is_an_adapter_of_the_summed_factors(adapted: World, tmp_path: Path) -> None:
    outcome = merge(adapted, tmp_path / "out", QUICK)
    assert outcome.manifest.kind is CheckpointKind.ADAPTER
    assert outcome.manifest == import_checkpoint(tmp_path / "out", ignore)
    result = LocalCheckpoint(id="result", path=tmp_path / "out", manifest=outcome.manifest)
    base, fused = read_tensors(adapted.base.path), read_fused(result, adapted.base)
    for module, update in compose(coefficients_in(tmp_path / "out")).items():
        expected = (base[f"{module}.weight"].double() + update).float()
        torch.testing.assert_close(fused[f"{module}.weight"], expected, rtol=1e-5, atol=1e-6, msg=module)


def test_it_replays_with_the_coefficients_and_without_tasks(adapted: World, tmp_path: Path) -> None:
    first, same = (merge(adapted, tmp_path / name, QUICK) for name in ("first", "same"))
    given = {"coefficients": {"*": coefficients_in(tmp_path / "first")}}
    again = merge(adapted, tmp_path / "again", given)
    assert first.manifest.weights_digest == same.manifest.weights_digest == again.manifest.weights_digest


def test_half_an_adapter_is_a_quarter_of_its_update_but_half_in_the_space_delta(adapted: World, tmp_path: Path) -> None:
    half = {"coefficients": {"*": [0.5, 0.0]}}
    merge(adapted, tmp_path / "factors", half)
    run(in_space(adapted.work(tmp_path / "delta", half, method="lorahub"), "delta"))
    base = read_tensors(adapted.base.path)
    outcome = tiny_bert.local(tmp_path / "factors")
    of_factors, of_delta = read_fused(outcome, adapted.base), read_tensors(tmp_path / "delta")
    whole = compose([1.0, 0.0])
    for module in MODULES:
        name = f"{module}.weight"
        torch.testing.assert_close(of_factors[name] - base[name], (whole[module] / 4).float(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(of_delta[name] - base[name], (whole[module] / 2).float(), rtol=1e-4, atol=1e-5)


def test_adapters_are_composed_by_their_factors_unless_another_space_is_named() -> None:
    card = load_catalog().method("lorahub")
    adapters = [CheckpointKind.ADAPTER] * 2
    assert check_kinds(card, None, base=CheckpointKind.DENSE, models=adapters) == "factors"
    assert check_kinds(card, "delta", base=CheckpointKind.DENSE, models=adapters) == "delta"
    assert check_kinds(card, None, base=CheckpointKind.DENSE, models=[CheckpointKind.DENSE]) is None


def test_adapters_of_different_ranks_are_refused_with_the_way_out(adapted: World, tmp_path: Path) -> None:
    other = peft_folders.write_adapter(tmp_path / "other", draw(3, rank=2), r=2)
    mixed = replace(adapted, models=(adapted.models[0], other))
    with pytest.raises(IncompatibleCheckpoints, match=r"rank 3.*rank 2.*Merge in the space 'delta'"):
        merge(mixed, tmp_path / "out", QUICK)


def test_the_plan_counts_the_models_that_run(adapted: World, tmp_path: Path) -> None:
    recipe = in_space(adapted.work(tmp_path / "out", QUICK, method="lorahub")).recipe
    card = load_catalog().method("lorahub")
    manifests = [model.manifest for model in adapted.models]
    plans = [
        plan_merge(one, adapted.base.manifest, manifests, card)
        for one in (recipe, recipe.model_copy(update={"data": None}))
    ]
    weights = sum(tensor.n_elements for tensor in adapted.base.manifest.tensors)
    lain_on = sum(n_out * n_in for n_out, n_in in MODULES.values())
    assert plans[0].peak_memory_bytes - plans[1].peak_memory_bytes == 4 * (2 * weights + lain_on)
