"""Merges in parts: the files are those of the whole merge, to the byte, whatever a method must know of all tensors."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from app.domain.catalog import MethodCard, load_catalog
from app.domain.checkpoints import LocalCheckpoint
from app.domain.jobs import Progress
from app.domain.parts import share_out
from app.domain.recipes import Override, PinnedStep
from app.domain.work import MergeWork, PartWork
from tests.workers.files import FileMerge, write_checkpoint
from tests.workers.models import draw_normal
from tests.workers.splitting import SplitMerge
from workers.catalog import load_recipe
from workers.checkpoints.source import CheckpointSource, Run
from workers.fusion import Rows
from workers.numerics import fused
from workers.pipelines.parts import merge_part
from workers.statistics import ranks

SPLITTABLE = [
    card
    for card in load_catalog().methods
    if card.produces == "dense" and not card.copies and card.task_addition is None
]
SHARDS = 4000  # bytes: about half a dozen files
Models = list[LocalCheckpoint]


@pytest.fixture(autouse=True)
def _kernels() -> None:
    assert fused.load()


def write(
    folder: Path, n_models: int, dtype: torch.dtype = torch.float32, seed: int = 3
) -> tuple[LocalCheckpoint, Models]:
    base, models = draw_normal(seed, n_models)
    generator = torch.Generator().manual_seed(seed)
    for tensors in (base, *models):
        for name, shape in {
            "model.layers.0.w": (37, 61),
            "model.layers.1.w": (40, 40),
            "model.layers.2.w": (700,),
        }.items():
            tensors[name] = torch.randn(shape, generator=generator)
    written = [
        write_checkpoint(folder / f"m{index}", {name: one.to(dtype) for name, one in tensors.items()})
        for index, tensors in enumerate((base, *models))
    ]
    return written[0], written[1:]


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def check(
    merge: FileMerge, n_parts: int, base: LocalCheckpoint | None, models: Sequence[LocalCheckpoint], folder: Path
) -> int:
    """Check a merge in parts against the whole one; return the number of rounds it took.

    Once where each part has the ranges of its own tensors alone, and where every part has all inputs once with all of
    them and once with one in the rounds of statistics.
    """
    whole = merge(base, models, folder / "whole")
    rounds = {}
    for name, is_whole, n_tallying in (("sparse", False, 0), ("split", True, 0), ("tallied by one", True, 1)):
        output = folder / name
        manifest, report, rounds[name] = SplitMerge(merge, n_parts, is_whole, n_tallying)(base, models, output)
        assert manifest == whole
        assert digests(output) == digests(folder / "whole")
        assert report["n_parts"] == n_parts
    assert rounds["tallied by one"] >= rounds["split"]
    return rounds["split"]


def _base_for(card: MethodCard, base: LocalCheckpoint) -> LocalCheckpoint | None:
    return None if card.base_model == "unused" else base


@pytest.mark.parametrize("card", SPLITTABLE, ids=lambda card: card.name)
def test_every_method_gives_the_bytes_of_the_whole_merge(card: MethodCard, tmp_path: Path) -> None:
    base, models = write(tmp_path, min(max(2, card.min_models), card.max_models or 2))
    check(FileMerge(card.name, shard_bytes=SHARDS), 3, _base_for(card, base), models, tmp_path)


@pytest.mark.parametrize(
    ("method", "parameters", "n_rounds"),
    [
        ("average", {}, 1),
        ("task_arithmetic", {}, 1),
        ("ties", {}, 3),  # boundaries, majority, merge
        ("ties", {"zero_vote": "positive"}, 2),
        ("ties", {"zero_vote": "positive", "density": 1.0}, 1),  # one less than the card says
        ("ties", {"zero_vote": "positive", "trim_scope": "tensor"}, 1),  # each part finds those of its own tensors
        ("breadcrumbs", {"scope": "global"}, 2),
        ("breadcrumbs", {"scope": "tensor"}, 1),
        ("della", {}, 1),
        ("tsv_m", {}, 1),
    ],
)
@pytest.mark.parametrize(("shard_bytes", "n_parts"), [(700, 2), (100, 5), (6000, 2)])
def test_shards_and_parts_of_any_number(  # noqa: PLR0913
    method: str, parameters: dict[str, Any], n_rounds: int, shard_bytes: int, n_parts: int, tmp_path: Path
) -> None:
    base, models = write(tmp_path, 3, torch.bfloat16)
    found = check(FileMerge(method, parameters, shard_bytes=shard_bytes), n_parts, base, models, tmp_path)
    assert found == n_rounds


@pytest.mark.parametrize("by", ["kernels", "torch"])
def test_large_scopes_are_counted_in_rounds(by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if by == "torch":
        monkeypatch.setattr(fused, "is_ready", lambda: False)
    generator = torch.Generator().manual_seed(1)
    tensors = [
        {f"layers.{at}.w": torch.randn(250, 401, generator=generator).bfloat16() for at in range(4)} for _ in range(4)
    ]
    base, *models = [write_checkpoint(tmp_path / f"m{index}", own) for index, own in enumerate(tensors)]
    merge = FileMerge("ties", {"density": 0.37}, shard_bytes=300_000, chunk_elements=4096)
    assert check(merge, 4, base, models, tmp_path) == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"transforms": (PinnedStep(name="ties", version=1, parameters={}),)},
        {
            "transforms": (PinnedStep(name="ties", version=1, parameters={"trim_scope": "tensor"}),),
            "method": "breadcrumbs",
        },
        {"post_steps": (PinnedStep(name="lines", version=1, parameters={}),), "method": "karcher"},
        {"post_steps": (PinnedStep(name="svc", version=1, parameters={}),)},
        {"overrides": (Override(match="model.layers.*", parameters={"scaling_coefficient": 0.25}),), "method": "ties"},
        {"exclude": ("model.layers.1.*",), "output_dtype": "float16"},
        {"threads": 3, "chunk_elements": 64, "method": "ties"},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_recipes_with_more_than_a_method(changes: dict[str, Any], tmp_path: Path) -> None:
    base, models = write(tmp_path, 2)
    check(FileMerge(**{"method": "task_arithmetic", "shard_bytes": SHARDS, **changes}), 3, base, models, tmp_path)


def test_integers_that_differ_are_told_by_the_join_and_tied_tensors_are_merged_in_every_part(tmp_path: Path) -> None:
    def one(seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        shared = torch.randn(30, 20, generator=generator)
        return {
            "lm_head.weight": shared,
            "model.counts": torch.tensor([seed]),
            "model.embed_tokens.weight": shared.clone(),
        }

    base, *models = [write_checkpoint(tmp_path / f"m{seed}", one(seed)) for seed in range(3)]
    merge = FileMerge("ties", shard_bytes=2500)
    assert len(base.manifest.tied) == 1
    check(merge, 2, base, models, tmp_path)
    _, report, _ = SplitMerge(merge, 2)(base, models, tmp_path / "again")
    told = "Integer tensor model.counts differs between the inputs; the reference's values were kept."
    assert told in str(report["warnings"])


def test_a_part_reads_the_inputs_of_its_own_tensors_and_reports_their_bytes(tmp_path: Path) -> None:
    base, models = write(tmp_path, 2)
    recipe, plan = FileMerge("task_arithmetic", shard_bytes=SHARDS).plan(base, models)
    totals = []
    for share in share_out(plan, 3):
        output = tmp_path / f"part-{share.index}"
        output.mkdir()
        work = MergeWork(recipe=recipe, base_model=base, models=tuple(models), output=output)
        said: list[Progress] = []
        part = PartWork(merge=work, share=share)
        outcome = merge_part(plan, load_recipe(recipe), part, on_progress=said.append)
        totals.append(said[-1].total)
        assert {file.path for file in outcome.files[:-1]} == set(share.files)
    assert sum(totals) == plan.bytes_read
    assert max(totals) < plan.bytes_read / 2


def test_what_a_round_has_judged_is_not_judged_in_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    tensors = [{f"layers.{at}.w": torch.randn(250, 401, generator=generator) for at in range(4)} for _ in range(3)]
    base, *models = [write_checkpoint(tmp_path / f"m{index}", own) for index, own in enumerate(tensors)]
    seen: list[tuple[str, bool]] = []
    read_rows = CheckpointSource.read_rows

    def note(source: CheckpointSource, run: Run) -> Rows:
        rows = read_rows(source, run)
        if run.n_elements == run.tensor.n_elements:  # no sample
            seen.append((rows.tensor, rows.is_judged))
        return rows

    monkeypatch.setattr(CheckpointSource, "read_rows", note)
    SplitMerge(FileMerge("ties", shard_bytes=500_000), 2)(base, models, tmp_path / "split")
    assert [is_judged for tensor, is_judged in seen if tensor == "layers.0.w"] == [False, True, True]


def test_what_was_found_of_passes_is_not_found_again_in_later_rounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(1)
    tensors = [{f"layers.{at}.w": torch.randn(250, 401, generator=generator) for at in range(4)} for _ in range(3)]
    base, *models = [write_checkpoint(tmp_path / f"m{index}", own) for index, own in enumerate(tensors)]
    calls: list[str] = []
    for name in ("guess_windows", "find_ties"):
        made = getattr(ranks, name)

        def note(*arguments: Any, name: str = name, made: Any = made) -> Any:
            calls.append(name)
            return made(*arguments)

        monkeypatch.setattr(ranks, name, note)
    merge = FileMerge("ties", shard_bytes=500_000)
    _, _, n_rounds = SplitMerge(merge, 2)(base, models, tmp_path / "split")
    assert n_rounds == 3
    assert calls == ["guess_windows"] * 2 + ["find_ties"] * 2
