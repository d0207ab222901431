"""`passthrough` against fusion-bench; what mergekit's documents say is in documents/."""

from benchmarks.parity.case import Case

SLICES = [{"sources": [{"model": 0, "layer_range": [first, first + 2]}]} for first in (0, 1)]

CASES = (
    Case(
        "passthrough", "layers 0–1 and 1–2 of one model", "fusion-bench", "DepthUpscalingAlgorithm",
        {"slices": SLICES},
        {"layers_at": "model.layers.", "n_layers": 3, "layer_indices": ["range(0, 2)", 1, 2]},
        weights=(1.0,), inputs="llamas",
    ),
)  # fmt: skip
