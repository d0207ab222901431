"""`lora_extract` read by PEFT."""

from benchmarks.parity.case import LOADED, Case

CASES = (
    Case("lora_extract", "rank 4", "peft", LOADED, {"rank": 4}, weights=(1.0,)),
    Case(
        "lora_extract",
        "rank 64, embeddings low-rank",
        "peft",
        LOADED,
        {"rank": 64, "embeddings": "lora"},
        weights=(1.0,),
    ),
)
