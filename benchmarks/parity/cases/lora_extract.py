"""`lora_extract` against mergekit's program, both adapters folded by us; and read by PEFT."""

from benchmarks.parity.case import FLOAT32_SVD, LOADED, Case

ONE = (1.0,)
CALL = "mergekit-extract-lora"
HEAD = "lm_head.weight"
WHOLE = "it keeps the head whole where it keeps the embeddings; ours is cut to the rank, as any matrix"

CASES = (
    Case(
        "lora_extract", "rank 4", "mergekit", CALL, {"rank": 4}, {"max-rank": 4}, ONE,
        inputs="llamas", tolerance=FLOAT32_SVD, left_out=(HEAD,),
    ),
    Case(
        "lora_extract", "rank 4, the head too", "mergekit", CALL, {"rank": 4}, {"max-rank": 4}, ONE,
        inputs="llamas", tolerance=FLOAT32_SVD, differs=WHOLE,
    ),
    Case(
        "lora_extract", "rank 4, embeddings and head low-rank", "mergekit", CALL,
        {"rank": 4, "embeddings": "lora"}, {"max-rank": 4, "embed-lora": True}, ONE,
        inputs="llamas", tolerance=FLOAT32_SVD,
    ),
    Case(
        "lora_extract", "singular values above .1", "mergekit", CALL,
        {"rank": 16, "absolute_tolerance": 0.1}, {"max-rank": 16, "sv-epsilon": 0.1}, ONE,
        inputs="llamas", tolerance=FLOAT32_SVD, left_out=(HEAD,),
    ),
    Case("lora_extract", "rank 4", "peft", LOADED, {"rank": 4}, weights=ONE),
    Case(
        "lora_extract", "rank 64, embeddings low-rank", "peft", LOADED, {"rank": 64, "embeddings": "lora"}, weights=ONE
    ),
)  # fmt: skip
