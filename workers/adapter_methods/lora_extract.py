"""LoRA extraction: turn what fine-tuning added to a dense model into an adapter of a given rank.

Source: Eckart, Young 1936, Psychometrika 1 (the best approximation of a rank); the idea of mergekit-extract-lora.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field

from app.domain.parameters import Parameters
from workers.adapter_contract import AdapterContext, Change, DenseChange, adapter_method
from workers.numerics import low_rank, spectra
from workers.patches import LowRank


class LoraExtractParameters(Parameters):
    """Parameters of `lora_extract`."""

    rank: Annotated[int, Field(ge=1, le=4096, description="Highest rank of a module's update.")] = 32
    absolute_tolerance: Annotated[
        float, Field(ge=0.0, description="Singular values of at most this are dropped; 0 drops none.")
    ] = 0.0
    relative_tolerance: Annotated[
        float, Field(ge=0.0, lt=1.0, description="Singular values of at most this part of the largest are dropped.")
    ] = 0.0
    embeddings: Annotated[
        Literal["modules_to_save", "lora", "skip"],
        Field(description="Embeddings: kept whole, made low-rank, or left as the base's."),
    ] = "modules_to_save"
    vectors: Annotated[
        Literal["modules_to_save", "skip"],
        Field(description="Norms, biases and what else is no matrix: kept whole, or left as the base's."),
    ] = "modules_to_save"


@adapter_method(
    name="lora_extract",
    version=2,
    title="LoRA extraction",
    summary="Turns a fine-tuned dense model and its base into an adapter of a given rank.",
    source="Eckart, Young 1936; mergekit-extract-lora",
    aliases=("extract_lora", "mergekit_extract_lora"),
    parameters=LoraExtractParameters,
    adapter_spaces=("delta",),
    models=(1, 1),
    weights="unused",
    accepts_dense=True,
)
def merge(
    modules: Sequence[DenseChange], parameters: LoraExtractParameters, context: AdapterContext
) -> Mapping[str, LowRank]:
    """Return the best approximation of each change of at most the rank; what did not change has rank 0.

    Components no larger than what rounding the weights to float32 adds are left out, as of low-rank patches.
    """
    return {module.name: _extract(module.read(), parameters) for module in modules}


def _extract(change: Change, parameters: LoraExtractParameters) -> LowRank:
    found = spectra.decompose(change.matrix, parameters.rank, null=parameters.relative_tolerance)
    least = max(parameters.absolute_tolerance, change.rounding)
    return low_rank.first(found, int((found.values > least).sum()))
