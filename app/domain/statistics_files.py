"""Files of statistics that a merge leaves beside its weights, one per model, for other merges of the same models."""

from collections.abc import Iterable, Sequence

from app.domain.checkpoints import FileEntry

FOLDER = "statistics"
DIGEST_CHARACTERS = 16


def statistics_file(kind: str, weights_digest: str) -> str:
    """Return where the statistics of a model lie in a checkpoint. kind: as the method's card names it."""
    return f"{FOLDER}/{kind}-{weights_digest[:DIGEST_CHARACTERS]}.safetensors"


def is_statistics_file(path: str) -> bool:
    """Tell whether a file of a checkpoint holds statistics."""
    return path.startswith(f"{FOLDER}/") and path.endswith(".safetensors")


def find_statistics(
    kind: str, weights_digests: Sequence[str], sources: Sequence[Iterable[FileEntry]]
) -> list[int | None]:
    """Return, per model, which of the sources holds its statistics: the first that does, or None."""
    held = [{entry.path for entry in files} for files in sources]
    wanted = [statistics_file(kind, digest) for digest in weights_digests]
    return [next((at for at, paths in enumerate(held) if path in paths), None) for path in wanted]
