"""The recipe and the model card that a fine-tuning leaves beside its weights."""

import json

from pydantic import JsonValue

from app.domain.catalog import FinetunerCard
from app.domain.checkpoints import LocalCheckpoint
from app.domain.parameters import Parameters
from app.domain.work import FinetuneWork

FINETUNE_FORMAT_VERSION = 1
RECIPE_FILE = "finetune.json"
CARD_FILE = "README.md"


def recipe_of(work: FinetuneWork, card: FinetunerCard, parameters: Parameters) -> dict[str, JsonValue]:
    """Return all that decides the result's bytes: inputs by their digests, technique, parameters, seed."""
    recipe: dict[str, JsonValue] = {
        "format_version": FINETUNE_FORMAT_VERSION,
        "technique": card.name,
        "technique_version": card.version,
        "base_model": _pinned(work.base_model),
        "head_base_model": _pinned(work.head_base_model),
        "task": {"name": work.task.spec.name, "digest": work.task.spec.digest},
        "parameters": parameters.model_dump(mode="json"),
        "seed": work.seed,
    }
    return recipe if work.family is None else recipe | {"family": _pinned(work.family)}


def write_documents(work: FinetuneWork, card: FinetunerCard, parameters: Parameters) -> None:
    """Write `finetune.json` and the model card into the work's output folder."""
    text = json.dumps(recipe_of(work, card, parameters), indent=2, sort_keys=True, ensure_ascii=False)
    (work.output / RECIPE_FILE).write_text(f"{text}\n", encoding="utf-8")
    (work.output / CARD_FILE).write_text(_card(work, card, parameters), encoding="utf-8")


def _pinned(checkpoint: LocalCheckpoint) -> dict[str, JsonValue]:
    return {"content_digest": checkpoint.manifest.digest, "weights_digest": checkpoint.manifest.weights_digest}


def _card(work: FinetuneWork, card: FinetunerCard, parameters: Parameters) -> str:
    spec = work.task.spec
    rows = "\n".join(f"| {name} | {value} |" for name, value in sorted(parameters.model_dump(mode="json").items()))
    is_adapter = card.produces == "adapter"
    family = "" if work.family is None else f"\n| family | `{work.family.manifest.digest}` |"
    return f"""---
library_name: {"peft" if is_adapter else "transformers"}
tags:
- amalgam
- finetuned
---

# {spec.name}: {"an adapter" if is_adapter else "a fine-tuned checkpoint"}

Made by Amalgam with the technique `{card.name}` (version {card.version}): {card.summary}

| input | content digest (sha256) |
| --- | --- |
| base model | `{work.base_model.manifest.digest}` |
| base model of the head | `{work.head_base_model.manifest.digest}` |
| task `{spec.name}` | `{spec.digest}` |{family}

{_contents(work, is_adapter=is_adapter)}

| parameter | value |
| --- | --- |
{rows}
| seed | {work.seed} |

`{RECIPE_FILE}` says the same for programs. Source of the recipe: {card.source}.
"""


def _contents(work: FinetuneWork, *, is_adapter: bool) -> str:
    spec = work.task.spec
    if spec.head.kind == "own":
        holds = "an adapter on the base model, for PEFT" if is_adapter else "the whole model"
        return f"The task has the head `own`, which lies in each model; this checkpoint holds\n{holds}."
    holds = "an adapter on the encoder of the base model, for PEFT" if is_adapter else "the encoder"
    head = f"The task has {len(spec.classes)} classes and the head `{spec.head.kind}`, which stays with the task"
    return f"{head}; this checkpoint\nholds {holds}."
