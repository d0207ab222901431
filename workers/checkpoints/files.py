"""Which files make up a checkpoint, and what their headers say; no weight is read here.

A checkpoint is a Hugging Face folder (one safetensors file, or shards with an index; config and tokenizer beside them)
or one bare safetensors file. Pickled weights and hidden files are not taken. Links to files are followed, as the caches
of model hubs have them: where a link may lead is judged by whoever admits the folder (app/storage/local_sources.py).
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.domain.checkpoints import TensorSpec
from app.domain.errors import CheckpointInvalid, InvalidHeader, MissingWeights, UnsafeFormat
from app.domain.headers import PREFIX_BYTES, parse_header, read_header_length
from app.domain.patches import BASE_FILE, PATCH_FOLDER

WEIGHTS_SUFFIX = ".safetensors"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
ADAPTER_FILE = "adapter_model.safetensors"
LINEARIZED_FILE = "linearized_adapter_model.safetensors"  # the factors with their start; before a folded copy beside it
ADAPTER_FILES = (LINEARIZED_FILE, ADAPTER_FILE)
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
COMPANION_SUFFIXES = (".json", ".txt", ".model", ".md", ".jinja", ".tiktoken", ".spm", ".bpe", ".vocab", ".yaml")
COMPANION_NAMES = ("LICENSE", "NOTICE")

MAX_COMPANION_BYTES = 200_000_000
MAX_INDEX_BYTES = 64_000_000
MAX_FILES = 10_000
MAX_DEPTH = 4

_CONVERT = (
    "convert it where you trust it: "
    "AutoModel.from_pretrained(folder).save_pretrained(new_folder, safe_serialization=True)"
)


@dataclass(frozen=True)
class CheckpointFiles:
    """The files of a checkpoint, relative to `root`, with forward slashes, sorted."""

    root: Path
    weights: tuple[str, ...]
    companions: tuple[str, ...]  # index, config, tokenizer, license, …
    patches: tuple[str, ...] = ()  # of a multitask artifact: a file per task, and the base model that masks lie over


def find_files(source: Path) -> CheckpointFiles:
    """Return the files of the checkpoint at `source`, a folder or one safetensors file.

    Raises: MissingWeights, UnsafeFormat, CheckpointInvalid for a file beyond a limit.
    """
    if source.is_file():
        return _find_bare_file(source)
    if not source.is_dir():
        raise MissingWeights(f"Found nothing at {source.name!r}, expected a folder or a {WEIGHTS_SUFFIX} file.")
    sizes = dict(sorted(_walk(source)))
    weights = _find_weights(source, sizes)
    companions = tuple(path for path in sizes if _is_companion(path))
    for path in companions:
        if sizes[path] > MAX_COMPANION_BYTES:
            raise CheckpointInvalid(
                f"{path}: found {sizes[path]} bytes, expected at most {MAX_COMPANION_BYTES} for a file beside the "
                "weights; move it out of the folder."
            )
    return CheckpointFiles(source, weights, companions, _find_patches(sizes))


def read_headers(files: CheckpointFiles) -> list[TensorSpec]:
    """Return all tensors of the weight files, sorted by name.

    Raises: InvalidHeader for a broken header or a tensor that two files hold.
    """
    tensors: dict[str, TensorSpec] = {}
    for file in files.weights:
        for tensor in read_header(files.root / file, name=file):
            if tensor.name in tensors:
                raise InvalidHeader(
                    f"{file}, tensor {tensor.name!r}: {tensors[tensor.name].file} holds it too, expected each tensor "
                    "in one file; remove one of the two."
                )
            tensors[tensor.name] = tensor
    return [tensors[name] for name in sorted(tensors)]


def read_header(path: Path, *, name: str) -> list[TensorSpec]:
    """Return the tensors of one safetensors file; `name` is the file's path within its checkpoint.

    Raises: InvalidHeader.
    """
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        length = read_header_length(stream.read(PREFIX_BYTES), file=name, file_size=size)
        return parse_header(stream.read(length), file=name, file_size=size)


def check_index(files: CheckpointFiles, tensors: Sequence[TensorSpec]) -> None:
    """Compare the index, where there is one, with what the weight files hold.

    Raises: MissingWeights naming tensors that the index places where they are not, or does not place at all.
    """
    if INDEX_FILE not in files.companions or files.weights == (WEIGHTS_FILE,):
        return
    placed = _read_index(files.root)
    found = {tensor.name: tensor.file for tensor in tensors}
    misplaced = sorted(name for name, file in placed.items() if found.get(name) != file)
    if misplaced:
        name = misplaced[0]
        where = f"it lies in {found[name]}" if name in found else "no file holds it"
        raise MissingWeights(
            f"{INDEX_FILE}: places tensor {name!r} in {placed[name]}, but {where} "
            f"({len(misplaced)} such tensors); write the checkpoint again with save_pretrained."
        )
    unplaced = sorted(found.keys() - placed.keys())
    if unplaced:
        raise MissingWeights(
            f"{INDEX_FILE}: does not name tensor {unplaced[0]!r} of {found[unplaced[0]]} ({len(unplaced)} such "
            "tensors), expected all of them; write the checkpoint again with save_pretrained."
        )


def _find_bare_file(source: Path) -> CheckpointFiles:
    if source.suffix in PICKLE_SUFFIXES:
        raise UnsafeFormat(f"{source.name}: found pickled weights, expected {WEIGHTS_SUFFIX}; {_CONVERT}.")
    if source.suffix != WEIGHTS_SUFFIX:
        raise MissingWeights(f"{source.name}: found a file of another kind, expected {WEIGHTS_SUFFIX} or a folder.")
    return CheckpointFiles(source.parent, (source.name,), ())


def _walk(root: Path) -> Iterator[tuple[str, int]]:
    """Yield (relative path, size) of every file that is not hidden, at most MAX_DEPTH folders down."""
    for n_files, path in enumerate(_walk_folder(root, depth=0)):
        if n_files >= MAX_FILES:
            raise CheckpointInvalid(f"Found more than {MAX_FILES} files, expected the folder of one checkpoint.")
        yield path.relative_to(root).as_posix(), path.stat().st_size


def _walk_folder(folder: Path, *, depth: int) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_file():
            yield path
        elif path.is_dir() and not path.is_symlink() and depth < MAX_DEPTH:
            yield from _walk_folder(path, depth=depth + 1)


def _find_weights(root: Path, sizes: dict[str, int]) -> tuple[str, ...]:
    """Return the weight files, by the same precedence as transformers: one file before an index."""
    if WEIGHTS_FILE in sizes:
        return (WEIGHTS_FILE,)
    if INDEX_FILE in sizes:
        return _find_shards(root, sizes)
    bare = [path for path in sizes if path.endswith(WEIGHTS_SUFFIX) and "/" not in path]
    for file in ADAPTER_FILES:
        if file in bare:
            return (file,)
    if len(bare) == 1:
        return (bare[0],)
    if bare:
        raise MissingWeights(
            f"Found {len(bare)} {WEIGHTS_SUFFIX} files ({', '.join(bare[:5])}) without {INDEX_FILE}, expected the "
            "index that says which tensor lies where; add it, or leave one file."
        )
    pickled = [path for path in sizes if path.endswith(PICKLE_SUFFIXES)]
    if pickled:
        raise UnsafeFormat(f"{pickled[0]}: found pickled weights, expected {WEIGHTS_SUFFIX}; {_CONVERT}.")
    raise MissingWeights(f"Found no {WEIGHTS_SUFFIX} file among {len(sizes)} files, expected {WEIGHTS_FILE} or shards.")


def _find_shards(root: Path, sizes: dict[str, int]) -> tuple[str, ...]:
    shards = sorted(set(_read_index(root).values()))
    missing = [shard for shard in shards if shard not in sizes]
    if missing:
        raise MissingWeights(
            f"{INDEX_FILE}: names {len(missing)} files that are not there ({', '.join(missing[:10])}), expected all "
            f"{len(shards)}; copy them beside it."
        )
    return tuple(shards)


def _read_index(root: Path) -> dict[str, str]:
    """Return tensor name -> file name; only plain names of safetensors files in the same folder are taken."""
    path = root / INDEX_FILE
    document = read_json(path, max_bytes=MAX_INDEX_BYTES)
    placed = document.get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise CheckpointInvalid(f"{INDEX_FILE}: found no weight_map, expected tensor names with their files.")
    for name, file in placed.items():
        is_plain = isinstance(file, str) and "/" not in file and "\\" not in file and file.endswith(WEIGHTS_SUFFIX)
        if not is_plain:
            raise CheckpointInvalid(
                f"{INDEX_FILE}: places tensor {name[:120]!r} in {str(file)[:120]!r}, expected the name of a "
                f"{WEIGHTS_SUFFIX} file in the same folder."
            )
    return placed


def read_json(path: Path, *, max_bytes: int) -> dict[str, object]:
    """Return the JSON object in a file of bounded size.

    Raises: CheckpointInvalid.
    """
    with path.open("rb") as stream:
        text = stream.read(max_bytes + 1)
    if len(text) > max_bytes:
        raise CheckpointInvalid(f"{path.name}: found more than {max_bytes} bytes, expected at most that.")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointInvalid(f"{path.name}: found text that is not JSON ({str(error)[:200]}); repair it.") from None
    if not isinstance(document, dict):
        raise CheckpointInvalid(f"{path.name}: found a JSON {type(document).__name__}, expected an object.")
    return document


def _find_patches(sizes: dict[str, int]) -> tuple[str, ...]:
    patches = [path for path in sizes if path.startswith(f"{PATCH_FOLDER}/") and path.endswith(WEIGHTS_SUFFIX)]
    return tuple(path for path in sizes if path in patches or (patches and path == BASE_FILE))


def _is_companion(path: str) -> bool:
    name = path.rsplit("/", 1)[-1]
    return path.endswith(COMPANION_SUFFIXES) or name.startswith(COMPANION_NAMES)
