"""Families: linearized adapters that begin at one φ₀, so that what they learn can be added up."""

from torch import Tensor

from app.domain.adapters import parts_of
from app.domain.checkpoints import CheckpointKind, LocalCheckpoint
from app.domain.errors import IncompatibleCheckpoints
from workers.checkpoints.adapters import read_factor
from workers.checkpoints.reader import TensorReader
from workers.model_contract import Start
from workers.training.parameters import LoraParameters


def read_start(family: LocalCheckpoint, parameters: LoraParameters) -> Start:
    """Return where an adapter's factors began, by module.

    Raises: IncompatibleCheckpoints for an adapter that does not tell it, or was scaled otherwise.
    """
    parts = parts_of(family.manifest) if family.manifest.kind is CheckpointKind.ADAPTER else None
    if parts is None or not parts.is_linearized:
        raise IncompatibleCheckpoints(
            "family: the checkpoint is no linearized adapter, so it does not tell where its factors began. Name an "
            "adapter that was trained with linearized_lora, or leave family out."
        )
    scaling = parameters.alpha / (parameters.rank**0.5 if parameters.use_rslora else parameters.rank)
    start: dict[str, tuple[Tensor, Tensor]] = {}
    with TensorReader(family) as files:
        for module, part in parts.lora.items():
            if part.scaling != scaling:
                raise IncompatibleCheckpoints(
                    f"family: the adapter scales {module!r} by {part.scaling} and this request by {scaling} (alpha, "
                    "rank, use_rslora), expected the same. Set alpha and rank as the adapter has them."
                )
            if part.a_start is not None and part.b_start is not None:
                start[module] = read_factor(files, part.a_start), read_factor(files, part.b_start)
    return start
