"""Write a trained model back in the form of the checkpoint it came from: its files, names, dtypes and shards.

Merging works on the names in the files, so a fine-tuned model must keep its base's. What was not trained is copied bit
by bit, heads and integer buffers included; config and tokenizer travel along.
"""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from app.domain.checkpoints import LocalCheckpoint
from app.domain.errors import ModelNotRunnable
from workers.checkpoints.companions import copy_companions
from workers.checkpoints.files import INDEX_FILE
from workers.checkpoints.model import list_names


def write_trained(base_model: LocalCheckpoint, module: PreTrainedModel, output: Path) -> tuple[str, ...]:
    """Write the base model's files into `output` with the module's weights, and return the names of changed tensors.

    Raises: ModelNotRunnable when a weight of the module has no place in the base model's files.
    """
    with tempfile.TemporaryDirectory(dir=output, prefix=".trained-") as folder:
        # save_pretrained turns the names in memory into those of files; the only public way to do so
        module.save_pretrained(folder, max_shard_size="100TB")
        with safe_open(Path(folder) / "model.safetensors", framework="pt") as trained:
            places = _places(base_model, module, frozenset(trained.keys()))
            weight_files = sorted({tensor.file for tensor in base_model.manifest.tensors})
            changed = [name for file in weight_files for name in _write_file(base_model, file, places, trained, output)]
    for _ in copy_companions(base_model, output, dtype=None):
        pass  # an iterator of what it has written
    if (base_model.path / INDEX_FILE).is_file():
        shutil.copyfile(base_model.path / INDEX_FILE, output / INDEX_FILE)  # the same tensors in the same shards
    return tuple(sorted(changed))


def _places(base_model: LocalCheckpoint, module: PreTrainedModel, saved: frozenset[str]) -> dict[str, str]:
    """Return, per tensor name of the base model's files, the name under which the module saves it."""
    prefix = f"{module.base_model_prefix}."  # of a model with a head, before its body's names; files may lack it
    places: dict[str, str] = {}
    for tensor in base_model.manifest.tensors:
        for name in (tensor.name, tensor.name.removeprefix(prefix), f"{prefix}{tensor.name}"):
            if name in saved:
                places.setdefault(tensor.name, name)
    homeless = sorted(name for name in saved - set(places.values()) if not name.startswith("pooler."))
    if homeless:
        raise ModelNotRunnable(
            f"{len(homeless)} tensors of the trained {type(module).__name__} have no place in the base model's files: "
            f"{list_names(homeless)}. Register the base model as save_pretrained writes it."
        )
    return places


def _write_file(
    base_model: LocalCheckpoint, file: str, places: Mapping[str, str], trained: safe_open, output: Path
) -> list[str]:
    tensors: dict[str, Tensor] = {}
    changed: list[str] = []
    with safe_open(base_model.path / file, framework="pt") as source:
        metadata = source.metadata()
        for name in source.keys():  # noqa: SIM118  not a mapping
            before: Tensor = source.get_tensor(name)
            tensors[name] = before
            if name in places and before.is_floating_point():
                after: Tensor = trained.get_tensor(places[name])  # type: ignore[no-untyped-call]
                if not torch.equal(after, before.float()):
                    tensors[name] = after.to(before.dtype)
                    changed.append(name)
    save_file(tensors, output / file, metadata=metadata)
    (output / file).chmod(0o644)  # the library makes it readable for its owner alone
    return changed
