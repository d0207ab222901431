"""Import: from the files of a checkpoint to its manifest.

Headers are checked and content is hashed; values are not judged: a NaN is found by the merge that meets it.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from app.domain.adapters import read_parts
from app.domain.checkpoints import (
    CheckpointKind,
    FileEntry,
    LoraConfig,
    Manifest,
    TaskPatch,
    TensorSpec,
    digest_weights,
)
from app.domain.errors import CheckpointInvalid
from app.domain.jobs import Progress
from app.domain.lora_configs import BASE_NAMES_FILE, CONFIG_FILE, parse_base_names, parse_lora_config
from workers.checkpoints import config, files, hashing, parallel
from workers.checkpoints.patch_checks import check_patches
from workers.pipelines.progress import ProgressMeter


def import_checkpoint(source: Path, on_progress: Callable[[Progress], None], *, threads: int | None = None) -> Manifest:
    """Return the manifest of the checkpoint at `source`, a folder or one safetensors file.

    The folder of a multitask artifact comes back as one, its patches checked against the model that they apply to.
    Every file is hashed, and every tensor by itself; memory does not grow with either.
    Raises: InvalidHeader, MissingWeights, UnsafeFormat, CheckpointInvalid; InputChanged if a file changes meanwhile.
    """
    found = files.find_files(source)
    tensors = files.read_headers(found)
    files.check_index(found, tensors)
    facts = config.read_config(found.root) if config.CONFIG_FILE in found.companions else config.ModelConfig()
    adapter = _read_adapter(found, tensors)
    entries, blake3_of = _hash(found, tensors, on_progress, threads=threads or parallel.n_cores())
    weights_digest = digest_weights(tensors, blake3_of)
    patches, patch_base = check_patches(found.root, found.patches, tensors, weights_digest)
    return Manifest(
        kind=_kind(adapter, patches),
        files=tuple(entries),
        tensors=tuple(tensors),
        weights_digest=weights_digest,
        tied=config.find_tied(facts, [tensor.name for tensor in tensors], blake3_of),
        architecture=facts.architecture,
        model_type=facts.model_type,
        vocab_size=facts.vocab_size,
        adapter=adapter,
        patches=patches,
        patch_base=patch_base,
    )


def _kind(adapter: LoraConfig | None, patches: Sequence[TaskPatch]) -> CheckpointKind:
    if patches:
        return CheckpointKind.MULTITASK
    return CheckpointKind.DENSE if adapter is None else CheckpointKind.ADAPTER


def _read_adapter(found: files.CheckpointFiles, tensors: Sequence[TensorSpec]) -> LoraConfig | None:
    """Return the adapter's config, its tensors checked against it; None for a dense checkpoint.

    Raises: CheckpointInvalid, AdapterUnsupported.
    """
    if found.weights[0] not in files.ADAPTER_FILES:
        return None
    if CONFIG_FILE not in found.companions:
        raise CheckpointInvalid(
            f"{found.weights[0]}: found no {CONFIG_FILE} beside it, expected it: it holds the adapter's rank and "
            "scaling. Copy it there, as PEFT's save_pretrained writes it."
        )
    adapter = parse_lora_config(files.read_json(found.root / CONFIG_FILE, max_bytes=config.MAX_CONFIG_BYTES))
    if BASE_NAMES_FILE in found.companions:
        names = files.read_json(found.root / BASE_NAMES_FILE, max_bytes=config.MAX_CONFIG_BYTES)
        adapter = adapter.model_copy(update={"base_names": parse_base_names(names)})
    read_parts(tensors, adapter)
    return adapter


def _hash(
    found: files.CheckpointFiles,
    tensors: Sequence[TensorSpec],
    on_progress: Callable[[Progress], None],
    *,
    threads: int,
) -> tuple[list[FileEntry], dict[str, str]]:
    """Hash every file, and every tensor by itself, in one pass over the bytes."""
    paths = sorted((*found.weights, *found.companions, *found.patches))
    sizes = {path: (found.root / path).stat().st_size for path in paths}
    of_files = {path: [tensor for tensor in tensors if tensor.file == path] for path in paths}
    meter = ProgressMeter(on_progress, total=sum(sizes.values()), unit="bytes")
    meter.enter("hashing")
    hashed = hashing.hash_all(
        [(found.root / path, own) for path, own in of_files.items()], meter.advance, threads=threads
    )
    entries = [
        FileEntry(path=path, size_bytes=sizes[path], sha256=one.sha256) for path, one in zip(paths, hashed, strict=True)
    ]
    return entries, {name: digest for one in hashed for name, digest in one.blake3_of.items()}
