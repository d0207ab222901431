"""The post-step `svc` against other tools."""

from benchmarks.parity.case import FLOAT32_SVD, Case

EMBEDDINGS = "model.embed_tokens.weight"
ARITHMETIC = "SingularValueCalibrationArithmeticTask"

CASES = (
    *(
        Case(
            "task_arithmetic", f"λ .3, then svc, floor {floor:g}", "fusion-bench", ARITHMETIC,
            {"scaling_coefficient": 0.3}, {"scaling_factor": 0.3, "alpha": floor},
            post_steps=(("svc", {"floor": floor, "dense_patterns": []}),),
        )
        for floor in (0.1, 1.0)
    ),
    Case(
        "task_arithmetic", "λ 1, then svc (the defaults: embeddings left alone)", "fusion-bench", ARITHMETIC,
        {"scaling_coefficient": 1.0}, {"scaling_factor": 1.0, "alpha": 1.0},
        post_steps=(("svc", {}),), left_out=(EMBEDDINGS,),
    ),
    Case(
        "tsv_m", "λ .5, then svc, floor 1", "fusion-bench", "SingularValueCalibration",
        {"scaling_coefficient": 0.5, "dense_patterns": []},
        {"merged_by": {"call": "TaskSingularVectorMerging", "parameters": {"alpha": 0.5}}, "alpha": 1.0},
        post_steps=(("svc", {"dense_patterns": []}),), tolerance=FLOAT32_SVD,
    ),
)  # fmt: skip
