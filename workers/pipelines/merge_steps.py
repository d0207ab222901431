"""The steps of a merge: runs of bytes of the result, each merged from a run of elements or copied as it is."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.domain.checkpoints import TensorSpec
from app.domain.errors import JobInternal, NotFinite
from app.domain.plans import PlannedTensor
from workers.checkpoints.finiteness import has_finite_bits
from workers.checkpoints.memory import Blocks, lying_as
from workers.checkpoints.parallel import PIECES_AT_ONCE, batched
from workers.checkpoints.reader import TORCH_DTYPES, FloatReader
from workers.checkpoints.source import CheckpointSource, MergedTensor, Run
from workers.contract import Fused, Piece, Tick
from workers.fusion import Bytes, FusedMasks
from workers.numerics import fused, task_vectors
from workers.patches import Masked, Packed, Part
from workers.pipelines.additions import Onto
from workers.pipelines.patching import RunPatches, encode_run
from workers.pipelines.program import MergeProgram
from workers.pipelines.progress import ProgressMeter

COPY_BYTES = 1 << 20
VARIANCE_SUFFIX = "running_var"
NEGATIVE_ZERO = np.iinfo(np.int32).min  # the bits of float32 -0.0


@dataclass(frozen=True)
class Inputs:
    """The open checkpoints, and where each one stores what is merged or copied."""

    reference: FloatReader
    base: FloatReader | None
    models: Sequence[FloatReader]
    stored: Mapping[str, TensorSpec]  # the reference's tensors
    found: Sequence[Mapping[str, TensorSpec]]  # each model's, under the reference's names
    own: Sequence[Mapping[str, TensorSpec]]  # each model's, under its own names
    merged: Mapping[str, MergedTensor]
    onto: Onto | None = None  # a dense result that the models are added to


@dataclass(frozen=True)
class Step:
    """A run of bytes of one tensor of the result: merged from runs of elements, or copied."""

    target: PlannedTensor
    offset: int  # byte offset within the tensor
    n_bytes: int
    runs: tuple[Run, ...] = ()  # none: copied
    fusion: Fused | None = None  # how all runs are merged, if in one go

    @property
    def position(self) -> int:
        """Where its bytes begin in their file."""
        return self.target.begin + self.offset

    @property
    def input_bytes(self) -> int:
        """How many bytes of input it is made of."""
        return sum(run.n_bytes for run in self.runs) if self.runs else self.n_bytes


@dataclass(frozen=True)
class Merger:
    """What it takes to compute one run: the program and the source."""

    program: MergeProgram
    inputs: Inputs
    source: CheckpointSource
    meter: ProgressMeter
    patched: tuple[str, ...] = ()  # of a multitask artifact: its tasks, one per model
    blocks: Blocks = field(default_factory=Blocks)  # for what steps give


@dataclass(frozen=True)
class Produced:
    """What one step gives: bytes of the result and, for a multitask artifact, what lies beside them."""

    content: memoryview
    differs: bool = False  # whether the models disagree about what is copied
    patches: list[RunPatches] = field(default_factory=list)
    sums: list[Part] = field(default_factory=list)  # that a dense result keeps, encoded
    block: Bytes | None = None  # that the content lies in, to be taken back


def cut_steps(target: PlannedTensor, merger: Merger) -> Iterator[Step]:
    """Cut a tensor of the result into steps; an empty tensor is one step of no bytes."""
    size = target.end - target.begin
    if size == 0:
        yield Step(target, 0, 0)
    elif target.copied_because is not None:
        for offset in range(0, size, COPY_BYTES):
            yield Step(target, offset, min(COPY_BYTES, size - offset))
    else:
        item = size // target.spec.n_elements
        fusion = fuse(target, merger)
        if fusion is not None:
            granularity = "element" if isinstance(fusion, FusedMasks) else fusion.granularity
            for run in merger.source.cut_rows(target.source, granularity):
                yield Step(target, run.offset * item, run.n_elements * item, (run,), fusion)
            return
        for runs in batched(merger.source.cut(target.source, merger.program.granularity), PIECES_AT_ONCE):
            yield Step(target, runs[0].offset * item, sum(run.n_elements for run in runs) * item, runs)


def split_step(step: Step) -> Iterator[Step]:
    """Yield a step for each of a step's runs; what is copied stays in one."""
    if len(step.runs) <= 1:
        yield step
        return
    item = step.n_bytes // sum(run.n_elements for run in step.runs)
    for run in step.runs:
        yield replace(step, offset=run.offset * item, n_bytes=run.n_elements * item, runs=(run,))


def fuse(target: PlannedTensor, merger: Merger) -> Fused | None:
    """Return how a kernel merges a tensor of the result; None where the method's own function does."""
    if merger.inputs.onto is not None or target.source.endswith(VARIANCE_SUFFIX):
        return None
    found = merger.program.fuse(target.source, target.shape)
    return found if isinstance(found, FusedMasks) == bool(merger.patched) else None


def produce(step: Step, merger: Merger) -> Produced:
    """Return the step's bytes with what lies beside them."""
    if step.n_bytes == 0:
        return Produced(memoryview(b""))
    if not step.runs:
        return _copy(step, merger)
    made = None if step.fusion is None else _merge_fused(step, step.fusion, merger)
    return _merge_runs(step, merger) if made is None else made


def _merge_fused(step: Step, fusion: Fused, merger: Merger) -> Produced | None:
    """Return what a step's one run becomes; None: what is wrong shows when it is merged by the method."""
    (run,) = step.runs
    share = merger.meter.share(run.n_bytes)
    block = merger.blocks.lend(step.n_bytes, step.position)
    out = torch.from_numpy(block).view(TORCH_DTYPES[step.target.dtype])
    result = out if out.dtype in fused.OUTPUTS else torch.empty_like(out, dtype=torch.float32)
    rows, masks = merger.source.read_rows(run), None
    if isinstance(fusion, FusedMasks):
        masks = fused.mask(rows, fusion, result)
        is_finite = masks is not None
    else:
        is_finite = fused.merge(rows, fusion, result)
    if is_finite and result is not out:
        out.copy_(result)
        is_finite = has_finite_bits(out)
    if not is_finite:
        merger.blocks.take_back(block)
        return None
    patches = [] if masks is None else [_encode_masks(masks, step.target, run, merger)]
    share.tick(1.0)
    return Produced(block.data, patches=patches, block=block)


def _merge_runs(step: Step, merger: Merger) -> Produced:
    """Return what a step's runs become by the method's own function."""
    dtype, patches, kept = TORCH_DTYPES[step.target.dtype], list[RunPatches](), list[Part]()
    block: Bytes | None = None
    for run in step.runs:
        share = merger.meter.share(run.n_bytes)
        piece, result, sums = _merge(run, step.target.name, merger, share.tick)
        if step.target.source.endswith(VARIANCE_SUFFIX):
            result = result.clamp(min=0.0)  # extrapolation may leave a variance below zero
        if merger.patched:  # before another copy of a whole tensor is made
            found = merger.program.patch(piece, share.tick)
            base = None if piece.base is None else piece.base.clone()
            patches.append(encode_run(base, run.offset, found, step.target, merger.patched))
        block = merger.blocks.lend(step.n_bytes, step.position) if block is None else block
        begin = (run.offset - step.runs[0].offset) * dtype.itemsize
        out = torch.from_numpy(block[begin : begin + run.n_elements * dtype.itemsize]).view(dtype)
        out.copy_(result)  # also where dtypes agree: the piece's buffers are used again
        _check_result(out, run)
        kept += sums
        share.tick(1.0)
    content = memoryview(b"") if block is None else block.data
    return Produced(content, patches=patches, sums=kept, block=block)


def _merge(run: Run, name: str, merger: Merger, tick: Tick) -> tuple[Piece, Tensor, list[Part]]:
    """Return a run's completed piece, the result's numbers, and the sums that it keeps. name: the result's tensor."""
    onto = merger.inputs.onto
    prepared = merger.program.prepare(merger.source.read_piece(run, merger.program.granularity))
    earlier = onto.sums.read(name, run.offset, run.n_elements) if onto is not None and onto.sums is not None else None
    sums = merger.program.sums(prepared, earlier)
    if sums is not None and prepared.base is not None:
        merged = task_vectors.add(prepared.base, sums.divide(), scaling_coefficient=1.0)
        piece = replace(prepared, merged=merged)
        return piece, _result_of(piece), sums.encode(run.tensor.n_elements, run.offset)
    piece = merger.program.complete(prepared, tick)
    result = _result_of(piece)
    return piece, result if onto is None else onto.add(result, piece, name), []


def _encode_masks(found: fused.FoundMasks, target: PlannedTensor, run: Run, merger: Merger) -> RunPatches:
    base = torch.from_numpy(np.empty(run.n_elements, dtype=np.float32))
    if merger.inputs.base is not None and run.tensor.base is not None:
        merger.inputs.base.read_floats(run.tensor.base, run.offset, base, is_judged=False)
    packed = [Packed(bits, run.n_elements) for bits in found.bits]
    masks = [Masked(bits, 1.0) for bits in packed]
    if found.sums is not None:
        masks = [Masked(bits, None, sums) for bits, sums in zip(packed, found.sums, strict=True)]
    return encode_run(base, run.offset, masks, target, merger.patched)


def _result_of(piece: Piece) -> Tensor:
    """Return what was merged of a completed piece, [m] float32 on the CPU."""
    if piece.merged is None:
        raise JobInternal(f"nothing was merged for tensor {piece.tensor!r}; report this fault.")
    return piece.merged if piece.base is None else _keep_negative_zeros(piece.merged, piece.base)


def _keep_negative_zeros(result: Tensor, base: Tensor) -> Tensor:
    """Return the result with -0.0 where it is zero and the base is -0.0: adding +0.0 to it loses the sign (law T2)."""
    bits: NDArray[np.int32] = base.numpy().view(np.int32)
    if bits.min(initial=0) != NEGATIVE_ZERO:  # -0.0 has the smallest bits there are
        return result
    kept = torch.from_numpy(bits == NEGATIVE_ZERO).logical_and_(result == 0)
    return torch.where(kept, base, result)


def _check_result(out: Tensor, run: Run) -> None:
    if has_finite_bits(out):
        return
    index = int(torch.isfinite(out).logical_not_().nonzero()[0])
    raise NotFinite(
        f"The merged tensor {run.tensor.name!r} is {out[index].item()} at flat index {run.offset + index} in "
        f"{out.dtype}, expected a finite number; lower the scaling coefficient or the weights, or choose a wider "
        "output dtype."
    )


def _copy(step: Step, merger: Merger) -> Produced:
    inputs = merger.inputs
    if step.target.model is not None:
        return Produced(_copy_from(inputs.models[step.target.model], inputs.own[step.target.model], step, merger))
    stored = inputs.stored[step.target.name]
    content = lying_as(step.position, step.n_bytes)
    inputs.reference.read_bytes(stored, step.offset, content.data)
    merger.meter.advance(step.n_bytes)
    differs = step.target.copied_because == "integer" and any(
        _is_other(content, step, stored, reader, found.get(step.target.source))
        for reader, found in zip(inputs.models, inputs.found, strict=True)
    )
    return Produced(content.data, differs)


def _copy_from(reader: FloatReader, tensors: Mapping[str, TensorSpec], step: Step, merger: Merger) -> memoryview:
    """Return a model's own bytes; where a factor or another dtype is asked for, computed in float32."""
    target, stored = step.target, tensors[step.target.source]
    merger.meter.advance(step.n_bytes)
    if target.factor == 1.0 and target.dtype == stored.dtype:
        content = lying_as(step.position, step.n_bytes)
        reader.read_bytes(stored, step.offset, content.data)
        return content.data
    dtype = TORCH_DTYPES[target.dtype]
    values = torch.empty(step.n_bytes // dtype.itemsize, dtype=torch.float32)
    reader.read_floats(stored, step.offset // dtype.itemsize, values, is_judged=False)
    if merger.source.nan_policy == "zero":
        values.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
    out = values.mul_(target.factor).to(dtype)
    if not has_finite_bits(out):
        index = int(torch.isfinite(out).logical_not_().nonzero()[0])
        raise NotFinite(
            f"Tensor {target.name!r}, {target.source!r} of models[{target.model}] times {target.factor:g}, is "
            f"{out[index].item()} at flat index {step.offset // dtype.itemsize + index} in {dtype}, expected a finite "
            "number; choose a wider output dtype, or set nan_policy to 'zero'."
        )
    return out.view(torch.uint8).numpy().data


def _is_other(
    content: NDArray[np.uint8],
    step: Step,
    stored: TensorSpec,
    reader: FloatReader,
    spec: TensorSpec | None,
) -> bool:
    if spec is None:
        return False
    if (spec.dtype, spec.shape) != (stored.dtype, stored.shape):
        return True
    theirs = np.empty(step.n_bytes, dtype=np.uint8)
    reader.read_bytes(spec, step.offset, theirs.data)
    return not np.array_equal(content, theirs)
