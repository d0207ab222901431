"""`tall_mask` against fusion-bench's masks of flat models. (Its algorithm subtracts a task vector where a model is
meant, and then fails on the types of the two.)"""

from benchmarks.parity.case import Case

CALL = "generate_task_masks"

CASES = (
    *(
        Case("tall_mask", f"task {task}", "fusion-bench", CALL, {}, {"tall_mask_lambda": 0.4}, task=task)
        for task in (0, 1, 2)
    ),
    Case(
        "tall_mask", "threshold 1, task 0", "fusion-bench", CALL,
        {"mask_threshold": 1.0}, {"tall_mask_lambda": 1.0}, task=0,
    ),
)  # fmt: skip
