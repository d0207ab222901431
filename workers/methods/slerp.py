"""Slerp: walk from one model to the other along the arc between them, tensor by tensor.

Source: Shoemake 1985, "Animating rotation with quaternion curves", equation of section 3.3.
Departs from source: the tensors are not normalized, only their angle is taken from unit vectors, so that equal norms
    are kept; nearly parallel and zero tensors take the straight line (docs/methods/slerp.md).
"""

from torch import Tensor

from app.domain.parameters import InterpolationPosition, Parameters
from workers.contract import MergeContext, merge_method
from workers.numerics import interpolate


class SlerpParameters(Parameters):
    """Parameters of `slerp`."""

    t: InterpolationPosition = 0.5


@merge_method(
    name="slerp",
    title="Slerp",
    summary="Spherical interpolation between exactly two models.",
    source="Shoemake 1985, Animating rotation with quaternion curves",
    aliases=("spherical_interpolation",),
    parameters=SlerpParameters,
    base_model="unused",
    models=(2, 2),
    weights="unused",
    granularity="tensor",
    order_matters=True,
    is_scale_equivariant=False,
)
def merge(base: Tensor | None, finetuned: Tensor, parameters: SlerpParameters, context: MergeContext) -> Tensor:
    """Return the point at t of the arc from models[0] to models[1].

    base: unused; finetuned: [2, *shape]; result: [*shape]. A tensor of 0 dimensions or one element has no angle but 0
    or a half turn, and takes the straight line.
    """
    return interpolate.interpolate_spherically(finetuned[0], finetuned[1], parameters.t)
