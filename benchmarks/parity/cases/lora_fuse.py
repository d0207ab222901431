"""`lora_fuse` against PEFT."""

from benchmarks.parity.case import Case

CASES = (
    Case("lora_fuse", "linear, Conv1D, conv and embedding", "peft", "merge_and_unload", weights=(1.0,)),
    Case("lora_fuse", "rsLoRA, patterns, modules_to_save", "peft", "merge_and_unload", weights=(1.0,)),
)
