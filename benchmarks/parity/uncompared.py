"""Why methods and steps are in no case: none of the tools has them, or theirs cannot be run without a download."""

from collections.abc import Mapping

NOWHERE = "in none of the tools"

REASONS: Mapping[str, str] = {
    "adamerging": "fusion-bench learns on CLIP, GPT-2, Flan-T5 or Llama and their data sets, which it downloads",
    "awd_task_arithmetic": NOWHERE,
    "cabs": NOWHERE,
    "dc_merge": NOWHERE,
    "greedy_soup": NOWHERE,
    "localize_and_stitch": NOWHERE,
    "localize_and_stitch_dataless": NOWHERE,
    "lorahub": NOWHERE,
    "pcb": NOWHERE,
    "regmean_plus_plus": "fusion-bench runs CLIP's layers on data that it downloads; it solves a layer as in `regmean`",
    "surgery": "fusion-bench learns it within AdaMerging of CLIP, on data that it downloads",
    "surgery_v2": NOWHERE,
}

STEPS: Mapping[str, str] = {
    "transform `awd`": NOWHERE,
    "transform `ties`": "in none of the tools alone; `task_arithmetic` behind it is `ties` with sums",
    "post-step `lines`": NOWHERE,
}
