"""`lora_extract` against mergekit's program, both adapters folded by us; and read by PEFT."""

from benchmarks.parity.case import FLOAT32_SVD, LOADED, Case

ONE = (1.0,)


def _compare(variant: str, parameters: dict[str, object], options: dict[str, object]) -> Case:
    return Case(
        "lora_extract", variant, "mergekit", "mergekit-extract-lora", parameters, options, ONE,
        inputs="llamas", tolerance=FLOAT32_SVD,
    )  # fmt: skip


CASES = (
    _compare("rank 4", {"rank": 4}, {"max-rank": 4}),
    _compare("rank 4, embeddings low-rank", {"rank": 4, "embeddings": "lora"}, {"max-rank": 4, "embed-lora": True}),
    _compare(
        "singular values above .1", {"rank": 16, "absolute_tolerance": 0.1}, {"max-rank": 16, "sv-epsilon": 0.1}
    ),
    Case("lora_extract", "rank 4", "peft", LOADED, {"rank": 4}, weights=ONE),
    Case(
        "lora_extract", "rank 64, embeddings low-rank", "peft", LOADED, {"rank": 64, "embeddings": "lora"}, weights=ONE
    ),
)  # fmt: skip
