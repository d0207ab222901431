"""`slerp` against other tools."""

from benchmarks.parity.case import Case

CASES = (
    Case("slerp", "t .5", "mergekit", "slerp", {"t": 0.5}, {"t": 0.5}, weights=(1.0, 1.0)),
    Case("slerp", "t .2", "mergekit", "slerp", {"t": 0.2}, {"t": 0.2}, weights=(1.0, 1.0)),
    Case("slerp", "t .5", "fusion-bench", "SlerpMergeAlgorithm", {"t": 0.5}, {"t": 0.5}, weights=(1.0, 1.0)),
    Case("slerp", "t .2", "fusion-bench", "SlerpMergeAlgorithm", {"t": 0.2}, {"t": 0.2}, weights=(1.0, 1.0)),
)  # fmt: skip
