"""Singular value calibration: directions of a merged matrix that several tasks share are counted once.

Source: 2026, arXiv:2602.05536, equations 4 and 8, algorithm 1.
Departs from source: see numerics/calibration.py; embeddings and heads are left alone by name.
"""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from app.domain.catalog import MatrixWork
from app.domain.parameters import MatrixChoice
from workers.contract import MergeContext, post_step
from workers.numerics import calibration, matrices, precision
from workers.numerics.matrices import TaskMatrices
from workers.stored import Models


class SvcParameters(MatrixChoice):
    """Parameters of `svc`."""

    floor: Annotated[
        float,
        Field(
            gt=0.0,
            le=10.0,
            description="Least share of a task in a direction: 1 never amplifies (after TSV or WUDI); 0.1 suits "
            "task arithmetic.",
        ),
    ] = 1.0


@post_step(
    name="svc",
    title="Singular value calibration",
    summary="Scales each singular direction of a merged matrix by how much of it the tasks share.",
    source="2026, arXiv:2602.05536",
    parameters=SvcParameters,
    granularity="matrix",
    work=(MatrixWork(seconds=0.2),),
)
def apply(base: Tensor, finetuned: Models, merged: Tensor, parameters: SvcParameters, context: MergeContext) -> Tensor:
    """Return the base plus the calibrated merged task matrix; what is no matrix stays as it was merged.

    base, merged: [*shape]; finetuned: [n, *shape]; result: [*shape]. The task matrices are those of the models as the
    method saw them, each counted once whatever its weight.
    """
    if not matrices.is_matrix(context.tensor, tuple(base.shape), parameters):
        return merged
    tasks = TaskMatrices.of(base.view(len(base), -1), finetuned, (1.0,) * len(finetuned))
    delta = merged.view(len(base), -1).double().sub_(tasks.base)
    if not bool(delta.isfinite().all()):
        return merged  # which is refused by its name
    calibrated = calibration.calibrate(delta, tasks, floor=parameters.floor)
    return precision.round_to_float32(calibrated.add_(tasks.base)).view(base.shape)
