"""Measures every element-wise and threshold method on a CLIP-shaped set, against the other tools that have it."""

from benchmarks.clip.rows import ROWS
from benchmarks.engine.measuring import Defaults, main

if __name__ == "__main__":
    main("python -m benchmarks.clip", __doc__, Defaults(ROWS, shape="clip", tiny="clip-tiny", n_models=8))
