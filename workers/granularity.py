"""How tensors are cut: into any runs of elements, into runs of whole rows along the last axis, or not at all."""

from math import prod

from app.domain.catalog import Granularity


def width_of(shape: tuple[int, ...]) -> int:
    """Return the length of a tensor's rows: along the last axis; a tensor of fewer than 2 dimensions is one row."""
    return shape[-1] if len(shape) > 1 else prod(shape)


def piece_shape(granularity: Granularity, shape: tuple[int, ...], n_elements: int) -> tuple[int, ...]:
    """Return the shape in which a piece of a tensor of this shape is seen."""
    if granularity == "element":
        return (n_elements,)
    if granularity == "row":
        width = width_of(shape)
        return (n_elements // width if width else 0, width)
    return shape


def step_elements(granularity: Granularity, shape: tuple[int, ...], piece_elements: int) -> int:
    """Return how many elements of a tensor a piece holds: about `piece_elements`, but whole rows or all of it."""
    if granularity == "element":
        return piece_elements
    if granularity == "row":
        width = max(1, width_of(shape))
        return width * max(1, piece_elements // width)
    return max(1, prod(shape))


def run_around(granularity: Granularity, shape: tuple[int, ...], first: int, behind: int) -> tuple[int, int]:
    """Return the smallest run, [first, behind), of whole rows or of the whole tensor around a run of its elements."""
    if granularity == "element":
        return first, behind
    if granularity == "row":
        width = max(1, width_of(shape))
        return first // width * width, -(-behind // width) * width
    return 0, prod(shape)
