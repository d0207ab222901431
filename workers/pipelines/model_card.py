"""The model card of a merge, README.md: what was merged from what, and how. Equal recipes give equal cards."""

import json

from app.domain.catalog import MethodCard
from app.domain.checkpoints import CheckpointKind, Manifest
from app.domain.patches import measure_storage
from app.domain.plans import MergePlan
from app.domain.recipes import Recipe

_FRONT = """---
library_name: transformers
tags:
- merge
- amalgam
- {method}
---
"""


def write_model_card(recipe: Recipe, card: MethodCard, plan: MergePlan, manifest: Manifest) -> str:
    """Return the card as Markdown, without clock times, ids or measurements."""
    sections = [
        _FRONT.format(method=recipe.method),
        f"# {card.title} of {len(recipe.models)} models\n",
        f"{card.summary} Source: {card.source}.\n",
        "## Inputs\n",
        _inputs(recipe),
        "## Effective parameters\n",
        f"```json\n{_json(recipe.parameters)}\n```\n",
        *_steps(recipe),
        "## Output\n",
        _output(recipe, plan, manifest),
        *(("## Tasks\n", _tasks(manifest)) if manifest.patches else ()),
        "## How to repeat it\n",
        "`recipe.json` beside this file is the whole recipe; equal recipes give equal bytes. Where the inputs above "
        "are registered, under whatever names, run `amalgam merge --recipe recipe.json`, or send the file as it is to "
        "`POST /v1/merges`. "
        f"Method version {recipe.method_version}, engine version {recipe.engine_version}, "
        f"recipe digest `{recipe.digest}`.\n",
    ]
    return "\n".join(sections)


def _inputs(recipe: Recipe) -> str:
    rows = ["| role | weight | content sha256 | weights sha256 |", "|---|---|---|---|"]
    if recipe.base_model is not None:
        rows.append(f"| base model | | `{recipe.base_model.content_digest}` | `{recipe.base_model.weights_digest}` |")
    for index, model in enumerate(recipe.models):
        rows.append(f"| models[{index}] | {model.weight:g} | `{model.content_digest}` | `{model.weights_digest}` |")
    own = {f"models[{index}]": model.parameters for index, model in enumerate(recipe.models) if model.parameters}
    return "\n".join(rows) + "\n" + (f"\nParameters of their own:\n\n```json\n{_json(own)}\n```\n" if own else "")


def _steps(recipe: Recipe) -> list[str]:
    """Return a section for what holds for some tensors only, and for each step before or after the method."""
    parts = (
        ("## Before the method\n", recipe.transforms),
        ("## For some tensors (of two that match, the later one)\n", recipe.overrides),
        ("## After the method\n", recipe.post_steps),
    )
    return [
        text
        for title, values in parts
        if values
        for text in (title, f"```json\n{_json([value.model_dump(mode='json') for value in values])}\n```\n")
    ]


def _json(value: object) -> str:
    return json.dumps(value, indent=2, sort_keys=True)


def _output(recipe: Recipe, plan: MergePlan, manifest: Manifest) -> str:
    is_adapter = manifest.kind is CheckpointKind.ADAPTER
    default = "float32" if is_adapter else "that of each tensor of the base model"
    lines = [
        f"- dtype: {recipe.output_dtype or default}",
        f"- tensors: {plan.n_merged} merged, {plan.n_copied} copied",
        f"- seed: {recipe.seed}",
        f"- NaN and infinity in the inputs: {'set to zero' if recipe.nan_policy == 'zero' else 'refused'}",
    ]
    if recipe.adapter_space is not None:
        lines.append(f"- adapters are merged in the space: {recipe.adapter_space}")
    for name, globs in (("included", recipe.include), ("excluded", recipe.exclude)):
        if globs:
            lines.append(f"- {name}: {', '.join(f'`{glob}`' for glob in globs)}")
    lines += [f"- note: {warning}" for warning in plan.warnings]
    return "\n".join(lines) + "\n"


def _tasks(manifest: Manifest) -> str:
    storage = measure_storage(manifest)
    rows = [f"| {patch.task} | `{patch.file}` | {patch.size_bytes:,} |" for patch in storage.patches]
    base = f" The masks lie over the base model, in `{manifest.patch_base}`." if manifest.patch_base else ""
    if any(patch.modules for patch in manifest.patches):
        base += " Surgery modules run beside the weights: no dense checkpoint holds a task's model."
    return "\n".join(
        [
            f"The weights are the model that all tasks share; a patch turns them into one task's.{base} The format of "
            "patches is told in Amalgam's docs/patches.md.\n",
            "| task | patch | bytes |",
            "|---|---|---|",
            *rows,
            "",
            f"- bytes stored: {storage.stored_bytes:,}, where one dense model per task would take "
            f"{storage.separate_bytes:,}: a ratio of {storage.byte_ratio}",
            f"- ratio of parameters, indices and masks not counted: {storage.parameter_ratio}",
            "",
        ]
    )
