"""Compares our merges with other tools' at the size of the goals, same files, whole processes in turn."""

from benchmarks.engine.measuring import Defaults, main
from benchmarks.engine.rows import ROWS

if __name__ == "__main__":
    main("python -m benchmarks.engine", __doc__, Defaults(ROWS, shape="0.1b", tiny="tiny", n_models=3))
