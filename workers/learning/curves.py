"""The losses of a run of learning, as a report tells them."""

from collections.abc import Sequence

from pydantic import JsonValue

MAX_LOSSES = 200  # points of a curve in a report


def thin_out(losses: Sequence[float]) -> list[JsonValue]:
    """Return at most so many points {step, loss}, evenly chosen from the first on."""
    stride = -(-len(losses) // MAX_LOSSES) or 1
    return [{"step": index + 1, "loss": losses[index]} for index in range(0, len(losses), stride)]
