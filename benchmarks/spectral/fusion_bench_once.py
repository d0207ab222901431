"""Runs in fusion-bench's own virtual environment: merges matrices with one of its functions, prints the seconds.

Usage: python fusion_bench_once.py ORDER; the order is a JSON object naming method, inputs, output and threads.
"""

import json
import sys
import time

import torch
from fusion_bench.method.task_singular_vector.utils import TSVM_utils  # type: ignore[import-not-found]
from fusion_bench.method.wudi.wudi import wudi_merging  # type: ignore[import-not-found]
from safetensors.torch import load_file, save_file
from torch import Tensor

ITERATIONS = 20


def main() -> None:
    """Merge once and write the merged task vectors."""
    order = json.loads(sys.argv[1])
    torch.set_num_threads(order["threads"])
    models: dict[str, dict[str, Tensor]] = {}
    for key, tensor in load_file(order["inputs"]).items():
        index, _, name = key.partition(".")
        models.setdefault(index, {})[name] = tensor
    base = models.pop("0")
    task_vectors = [{name: model[name] - base[name] for name in base} for model in models.values()]
    began_at = time.perf_counter()
    if order["method"] == "tsv_m":
        merged = TSVM_utils.compute_and_sum_svd_mem_reduction(task_vectors, accelerator="cpu")
    else:
        merged = wudi_merging(task_vectors, accelerator="cpu", iter_num=ITERATIONS)
    seconds = time.perf_counter() - began_at
    save_file({name: tensor.detach().contiguous().clone() for name, tensor in merged.items()}, order["output"])
    print(seconds)


if __name__ == "__main__":
    main()
