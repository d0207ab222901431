"""A merge's memory does not grow with the model: whole processes, two sizes, peak anonymous memory."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

MERGE = """
import sys, threading, time
from pathlib import Path
from app.domain.checkpoints import LocalCheckpoint
from tests.workers.files import FileMerge, ignore
from workers.pipelines.importing import import_checkpoint

def anonymous_bytes():
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024

def watch():
    global peak
    while True:
        peak = max(peak, anonymous_bytes())
        time.sleep(0.005)

folder, method = Path(sys.argv[1]), sys.argv[2]
found = [LocalCheckpoint(id=name, path=folder / name, manifest=import_checkpoint(folder / name, ignore))
         for name in ["base", "first", "second"] + ["second"] * (int(sys.argv[3]) - 2)]
peak = 0
threading.Thread(target=watch, daemon=True).start()
FileMerge(method, threads=2)(found[0], found[1:], folder / "out")
print(peak)
"""


def write_models(folder: Path, n_tensors: int) -> None:
    generator = torch.Generator().manual_seed(0)
    base = {f"w{index}": torch.randn(1024, 1024, generator=generator).bfloat16() for index in range(n_tensors)}
    for name in ("base", "first", "second"):
        moved = {key: tensor + 0.01 * torch.randn(tensor.shape, generator=generator) for key, tensor in base.items()}
        (folder / name).mkdir(parents=True)
        save_file({key: tensor.bfloat16() for key, tensor in moved.items()}, folder / name / "model.safetensors")


def peak_bytes(folder: Path, method: str, *, n_models: int = 2) -> int:
    command = [sys.executable, "-c", MERGE, str(folder), method, str(n_models)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=240)
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "limit"), [("task_arithmetic", 400_000_000), ("ties", 600_000_000)])
def test_peak_anonymous_memory_stays_below_its_limit_and_does_not_grow(method: str, limit: int, tmp_path: Path) -> None:
    write_models(tmp_path / "small", 12)  # 24 MB a model: enough for every buffer to be in use
    write_models(tmp_path / "large", 40)  # 80 MB a model: 160 MB in float32
    small, large = (peak_bytes(tmp_path / size, method) for size in ("small", "large"))
    assert large < limit
    assert large - small < 110_000_000  # 28 more tensors of 3 models are 350 MB in float32


@pytest.mark.slow
def test_a_method_of_matrices_holds_no_copy_of_each_model(tmp_path: Path) -> None:
    for index, name in enumerate(("base", "first", "second")):
        (tmp_path / name).mkdir()
        weights = torch.randn(4096, 1024, generator=torch.Generator().manual_seed(index))
        save_file({"w": weights}, tmp_path / name / "model.safetensors")
    two = peak_bytes(tmp_path, "iso_c")
    shutil.rmtree(tmp_path / "out")
    eight = peak_bytes(tmp_path, "iso_c", n_models=8)
    # six more models would be six copies; which temporaries meet varies by nearly three from run to run
    assert eight - two < 4 * weights.nbytes
