"""Random recipes on tiny models, through the checks of a request, the plan and the engine, each in two or three cuts.

A request is either refused by a named error or merged; what is merged has the same bytes whatever the pieces, shards,
threads and input files, and where it can be split the same files and report in parts of any number.
`python -m tests.workers.random_merges --n 10000` runs many; `--seed S --first I --n 1` runs one again.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import JsonValue, ValidationError

from app.domain import kind_checks, merge_checks
from app.domain.adapter_sets import writes_adapter
from app.domain.catalog import Catalog, MethodCard, load_catalog
from app.domain.checkpoints import LocalCheckpoint, Manifest
from app.domain.errors import AmalgamError, JobInternal
from app.domain.parts import find_why_whole
from app.domain.planning import plan_merge
from app.domain.recipes import Recipe, RecipeModel, pin
from app.domain.requests import MergeRequest
from app.domain.work import MergeWork
from tests.workers.files import ignore
from tests.workers.random_models import ModelSet, write_sets
from tests.workers.random_requests import draw_request
from tests.workers.splitting import Parts, merge_in_parts
from workers.catalog import load_adapter_recipe, load_recipe
from workers.numerics import fused
from workers.pipelines import adapter_merge, lora_extraction
from workers.pipelines.merge import merge_checkpoints

MERGED, MERGED_IN_PARTS, REFUSED = "merged", "merged, also in parts", "refused"


@dataclass(frozen=True)
class Cut:
    """How a merge is cut; the bytes must not show it."""

    threads: int
    chunk_elements: int | None
    shard_bytes: int
    is_sharded: bool  # the inputs
    parts: Parts | None = None  # None: as a whole


@dataclass(frozen=True)
class Outcome:
    """What came of a recipe."""

    code: str  # MERGED, REFUSED, or an error's
    digest: str = ""  # of the weights and patches that were merged
    written: Manifest | None = None
    report: dict[str, JsonValue] = field(default_factory=dict)


class Wrong(AssertionError):
    """A recipe that the engine got wrong."""


def run(seed: int, index: int, catalog: Catalog, sets: Sequence[ModelSet], folder: Path) -> str:
    """Run one recipe and return what came of it: the error's code, MERGED or MERGED_IN_PARTS.

    Raises: Wrong with the request, where an error is not a named one, or outcomes differ.
    """
    chance = random.Random(f"{seed}/{index}")
    models, request = chance.choice(sets), draw_request(chance, catalog)
    whole = Cut(1, None, 5_000_000_000, is_sharded=False)
    other = Cut(chance.randint(2, 4), chance.choice((1, 7, 64, 999)), chance.choice((900, 5_000)), is_sharded=True)
    split = replace(other, parts=Parts(chance.randint(2, 5), chance.random() < 0.5, chance.randint(0, 3)))
    about = f"seed {seed}, index {index}, set {models.trouble}, {request}"
    try:
        first, second, *third = _outcomes(request, models, catalog, (whole, other, split), folder)
    except Exception as error:
        raise Wrong(f"{about}: {type(error).__name__}: {error}\n{traceback.format_exc()}") from error
    if (first.code, first.digest) != (second.code, second.digest):
        raise Wrong(f"{about}: {whole} gives {first}, {other} gives {second}")
    for found in third:
        if (found.code, found.written) != (second.code, second.written):
            raise Wrong(f"{about}: {other} gives {second}, {split} gives {found}")
        n_parts = found.report.pop("n_parts", None)
        if found.report != second.report:
            raise Wrong(f"{about}: {other} reports {second.report}, {n_parts} parts report {found.report}")
    return MERGED_IN_PARTS if third and first.code == MERGED else first.code


def _outcomes(
    request: dict[str, JsonValue], models: ModelSet, catalog: Catalog, cuts: Sequence[Cut], folder: Path
) -> list[Outcome]:
    """Return what comes of a request in each cut; of the last one only where it can be split."""
    found = [_outcome(request, models, catalog, cut, folder) for cut in cuts]
    return [outcome for outcome in found if outcome is not None]


def _outcome(
    request: dict[str, JsonValue], models: ModelSet, catalog: Catalog, cut: Cut, folder: Path
) -> Outcome | None:
    """Return what comes of a request; None where it is not split."""
    try:
        asked = MergeRequest.model_validate(request)
    except ValidationError:
        return Outcome(REFUSED)
    place = folder / "outcome"
    output = place / "out"
    output.mkdir(parents=True)
    try:
        made = _merge(asked, models, catalog, cut, output)
    except JobInternal:
        raise
    except AmalgamError as error:
        if cut.parts is None and any(output.glob("*.safetensors")):
            raise Wrong(f"{error.code} left weights behind") from error
        return Outcome(error.code)
    finally:
        shutil.rmtree(place)
    if made is None:
        return None
    manifest, report = made
    beside = [file.sha256 for file in manifest.files if file.path.startswith("patches/")]
    return Outcome(MERGED, " ".join([manifest.weights_digest, *beside]), manifest, report)


def _merge(
    request: MergeRequest, models: ModelSet, catalog: Catalog, cut: Cut, output: Path
) -> tuple[Manifest, dict[str, JsonValue]] | None:
    """Do what the service and a worker do with a request; None where it is not split."""
    work, card = _draft(request, models.sharded if cut.is_sharded else models.whole, catalog, cut, output)
    recipe, base = work.recipe, work.base_model
    if cut.parts is not None and find_why_whole(recipe, card) is not None:
        return None
    manifests = [model.manifest for model in work.models]
    plan = plan_merge(recipe, None if base is None else base.manifest, manifests, card, catalog.cards_beside(recipe))
    if cut.parts is not None:
        return merge_in_parts(plan, work, cut.parts, threads=cut.threads, chunk_elements=cut.chunk_elements)[:2]
    common: dict[str, Any] = {  # both pipelines'
        "recipe": recipe, "base": base, "models": work.models, "output": output, "on_progress": ignore
    }  # fmt: skip
    if writes_adapter(recipe, card):
        pipeline = lora_extraction if card.name == "lora_extract" else adapter_merge
        made: tuple[Manifest, dict[str, JsonValue]] = pipeline.merge_adapters(
            plan, load_adapter_recipe(recipe), **common
        )
        return made
    return merge_checkpoints(
        plan, load_recipe(recipe), **common, threads=cut.threads, chunk_elements=cut.chunk_elements
    )


def _draft(
    request: MergeRequest, checkpoints: Sequence[LocalCheckpoint], catalog: Catalog, cut: Cut, output: Path
) -> tuple[MergeWork, MethodCard]:
    named = dict(zip(("base", *(f"model-{index}" for index in range(len(checkpoints)))), checkpoints, strict=False))
    base = None if request.base_model is None else named[request.base_model]
    models = tuple(named[model.checkpoint] for model in request.models)
    recipe = make_recipe(request, base, models, catalog, cut.shard_bytes)
    return MergeWork(recipe=recipe, base_model=base, models=models, output=output), catalog.method(recipe.method)


def make_recipe(
    request: MergeRequest, base: LocalCheckpoint | None, models: Sequence[LocalCheckpoint], catalog: Catalog, shard: int
) -> Recipe:
    """Return the recipe of a request, checked as app/services/merge_drafts.py does."""
    card, parameters = merge_checks.check_recipe(catalog, request)
    merge_checks.refuse_post_steps(card, request)
    kinds = [model.manifest.kind for model in models]
    space = kind_checks.check_kinds(
        card, request.adapter_space, base=None if base is None else base.manifest.kind, models=kinds
    )
    return Recipe(
        method=card.name,
        method_version=card.version,
        base_model=None if base is None else pin(base),
        models=tuple(
            RecipeModel(
                **pin(model).model_dump(),
                weight=asked.weight,
                task=asked.task if card.produces == "multitask" else None,
                parameters=merge_checks.check_model(catalog, card, request, at),
            )
            for at, (asked, model) in enumerate(zip(request.models, models, strict=True))
        ),
        parameters=parameters,
        seed=request.seed,
        output_dtype=request.output.dtype,
        shard_bytes=shard,
        include=tuple(request.include),
        exclude=tuple(request.exclude),
        nan_policy=request.nan_policy,
        tensors=request.tensors,
        adapter_space=space,
        merge_buffers=request.merge_buffers,
        overrides=merge_checks.check_overrides(
            catalog, card, request.overrides, parameters, n_models=len(request.models)
        ),
        transforms=merge_checks.check_steps(catalog, "transforms", request),
        post_steps=merge_checks.check_steps(catalog, "post_steps", request),
    )


def main() -> int:
    """Run many, print what came of them and what went wrong; fail if anything did."""
    parser = argparse.ArgumentParser(prog="python -m tests.workers.random_merges", description=__doc__)
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    fused.load()
    warnings.simplefilter("error")
    catalog, outcomes, n_wrong = load_catalog(), Counter[str](), 0
    began_at = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="amalgam-random-") as folder:
        sets = write_sets(Path(folder) / "sets", arguments.seed)
        for index in range(arguments.first, arguments.first + arguments.n):
            try:
                outcomes[run(arguments.seed, index, catalog, sets, Path(folder))] += 1
            except Wrong as error:
                n_wrong += 1
                _say(f"WRONG: {error}\n")
    _say(f"{arguments.n} recipes in {time.monotonic() - began_at:.0f} s, {n_wrong} wrong")
    for outcome, count in outcomes.most_common():
        _say(f"{count:8} {outcome}")
    return 1 if n_wrong else 0


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
