"""Which bytes of its inputs one part of a merge reads: ranges of their weight files.

Each range is kept as a file of its own, and a manifest says in which of them a tensor lies: nothing that reads tensors
knows of ranges.
"""

from collections.abc import Container, Sequence
from itertools import groupby

from app.domain.adapters import as_dense
from app.domain.checkpoints import FileEntry, Manifest, TensorSpec, Value, distinct_tensors
from app.domain.plans import MergePlan

NOWHERE = ""  # the file of a tensor that is not here
GAP_BYTES = 1 << 20  # between two ranges that are fetched as one: a request costs as much time as some megabytes


class FileRange(Value):
    """Bytes [begin, end) of a file."""

    path: str
    begin: int
    end: int

    @property
    def size_bytes(self) -> int:
        """How many bytes it is."""
        return self.end - self.begin

    @property
    def name(self) -> str:
        """The path under which the range is kept as a file."""
        return f"{self.path}.{self.begin}-{self.end}"


def find_needed(own: MergePlan, base: Manifest | None, models: Sequence[Manifest]) -> list[frozenset[str]]:
    """Return the names of the tensors that a part reads: of the base model, if there is one, then of each model.

    own: the plan of the part (parts.only_of). Adapters are small and read whole.
    """
    reference = base or models[0]
    expected, found = distinct_tensors(reference, [as_dense(model, reference) for model in models])
    compared = {tensor.source for tensor in own.tensors if tensor.copied_because in (None, "integer")}
    of_reference = {expected[name].name for name in compared if name in expected}
    of_reference |= {
        tensor.name for tensor in own.tensors if tensor.model is None and tensor.copied_because is not None
    }
    of_models = [
        {tensors[name].name for name in compared if name in tensors}
        | {tensor.source for tensor in own.tensors if tensor.model == index}
        if model.adapter is None
        else {tensor.name for tensor in model.tensors}
        for index, (tensors, model) in enumerate(zip(found, models, strict=True))
    ]
    if base is None:
        of_models[0] |= of_reference
        return [frozenset(names) for names in of_models]
    return [frozenset(names) for names in (of_reference, *of_models)]


def find_ranges(manifest: Manifest, needed: frozenset[str]) -> list[FileRange]:
    """Return the ranges that hold these tensors, in the order of files and bytes; near ones are one."""
    tensors = [tensor for tensor in manifest.tensors if tensor.name in needed]
    tensors.sort(key=lambda tensor: (tensor.file, tensor.begin, tensor.end))
    return [
        FileRange(path=path, begin=begin, end=end)
        for path, of_file in groupby(tensors, key=lambda tensor: tensor.file)
        for begin, end in _join_near([(tensor.begin, tensor.end) for tensor in of_file])
    ]


def within_ranges(manifest: Manifest, ranges: Sequence[FileRange], whole: Container[str]) -> Manifest:
    """Return the manifest with tensors placed in the files that ranges are kept as.

    whole: weight files that are here as they are. A tensor that is neither in these nor in a range lies in no file.
    """
    of_file: dict[str, list[FileRange]] = {}
    for one in ranges:
        of_file.setdefault(one.path, []).append(one)
    beside = [file for file in manifest.files if file.path not in of_file]
    entries = [FileEntry(path=one.name, size_bytes=one.size_bytes, sha256="") for one in ranges]
    tensors = [
        tensor if tensor.file in whole else _place(tensor, of_file.get(tensor.file, ())) for tensor in manifest.tensors
    ]
    return manifest.model_copy(
        update={
            "files": tuple(sorted((*beside, *entries), key=lambda file: file.path)),
            "tensors": tuple(tensors),
        }
    )


def _join_near(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for begin, end in spans:
        if joined and begin - joined[-1][1] <= GAP_BYTES:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((begin, end))
    return joined


def _place(tensor: TensorSpec, ranges: Sequence[FileRange]) -> TensorSpec:
    for one in ranges:
        if one.begin <= tensor.begin and tensor.end <= one.end:
            within = {"file": one.name, "begin": tensor.begin - one.begin, "end": tensor.end - one.begin}
            return tensor.model_copy(update=within)
    return tensor.model_copy(update={"file": NOWHERE})
