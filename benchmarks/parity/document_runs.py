"""Documents of mergekit's, merged by mergekit and by us: whether reading.py says in our words what mergekit does.

documents/ holds them, their models by ref; a first line `# differs: …` gives the reason why one is not expected to be
equal.
"""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from app.domain.catalog import load_catalog
from app.domain.checkpoints import LocalCheckpoint
from app.domain.mergekit.reading import read_merge
from app.domain.passthrough import pin_models
from app.domain.plans import make_plan
from app.domain.recipes import Override, Recipe, RecipeModel, pin
from app.domain.requests import MergeRequest
from benchmarks.parity import ours
from benchmarks.parity.environments import prepare
from workers.catalog import load_recipe
from workers.pipelines.merge import merge_checkpoints

DOCUMENTS = Path(__file__).with_name("documents")
SCRIPT = Path(__file__).with_name("oracle_mergekit_documents.py")
DIFFERS = "# differs: "


@dataclass(frozen=True)
class MergedDocument:
    """One document, merged on both sides."""

    name: str
    call: str  # mergekit's name for the method
    method: str  # ours
    differs: str  # why the results are not expected to be equal; empty: they are
    ours: Mapping[str, Tensor]
    theirs: Mapping[str, Tensor]


def find_documents() -> list[Path]:
    """Return the documents of methods that are here, by name."""
    here = {card.name for card in load_catalog().methods}
    return [path for path in sorted(DOCUMENTS.glob("*.yaml")) if _request_of(path).method in here]


def merge_documents(paths: Sequence[Path], inputs: Mapping[str, Path], folder: Path) -> list[MergedDocument]:
    """Merge documents on both sides, into folders below `folder`."""
    folder.mkdir()
    orders = [_order(path, inputs, folder) for path in paths]
    (folder / "orders.json").write_text(json.dumps(orders), encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    print(f"merging {len(orders)} documents with mergekit", flush=True)
    command = [prepare("mergekit"), SCRIPT, folder / "orders.json"]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    checkpoints = {ref: ours.open_checkpoint(path) for ref, path in inputs.items()}
    merged: list[MergedDocument] = []
    for path, order in zip(paths, orders, strict=True):
        request = _request_of(path)
        first = path.read_text(encoding="utf-8").splitlines()[0]
        merged.append(
            MergedDocument(
                name=path.name,
                call=_call_of(path),
                method=load_catalog().method(request.method).name,
                differs=first.removeprefix(DIFFERS) if first.startswith(DIFFERS) else "",
                ours=merge_request(request, checkpoints, folder / f"ours-{path.stem}"),
                theirs=_load(Path(order["output"])),
            )
        )
    return merged


def merge_request(request: MergeRequest, checkpoints: Mapping[str, LocalCheckpoint], output: Path) -> dict[str, Tensor]:
    """Merge checkpoints, by the refs that the request has, into the folder `output`; return the tensors."""
    base = checkpoints[request.base_model] if request.base_model is not None else None
    models = [checkpoints[model.checkpoint] for model in request.models]
    card, parameters = load_catalog().check(
        request.method,
        request.parameters,
        has_base_model=base is not None,
        weights=[model.weight for model in request.models],
    )
    if card.copies:
        parameters = pin_models(parameters, [model.checkpoint for model in request.models])
    recipe = Recipe(
        method=card.name,
        method_version=card.version,
        base_model=pin(base) if base is not None else None,
        models=tuple(
            RecipeModel(**pin(checkpoint).model_dump(), weight=model.weight, parameters=model.parameters)
            for model, checkpoint in zip(request.models, models, strict=True)
        ),
        parameters=parameters,
        overrides=tuple(Override.model_validate(one.model_dump(mode="json")) for one in request.overrides),
        output_dtype=request.output.dtype,
        shard_bytes=ours.SHARD_BYTES,
    )
    manifests = [model.manifest for model in models]
    plan = make_plan(recipe, base.manifest if base is not None else None, manifests, card)
    output.mkdir()
    merge_checkpoints(
        plan, load_recipe(recipe), recipe=recipe, base=base, models=models, output=output, on_progress=ours.ignore
    )
    return _load(output)


def _request_of(path: Path) -> MergeRequest:
    return MergeRequest.model_validate(read_merge(path.read_bytes()).request)


def _order(path: Path, inputs: Mapping[str, Path], folder: Path) -> dict[str, str]:
    """Write the document with paths in place of refs; return the order."""
    text = path.read_text(encoding="utf-8")
    for ref, place in inputs.items():
        text = text.replace(f"model: {ref}", f"model: {place}")  # also in `base_model: …`
    placed = folder / path.name
    placed.write_text(text, encoding="utf-8")
    return {"document": str(placed), "output": str(folder / f"theirs-{path.stem}")}


def _call_of(path: Path) -> str:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("merge_method: ")]
    return lines[0].removeprefix("merge_method: ")


def _load(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}
