"""Runs parts of experiments in processes of one thread each; what they find lies in a folder that they share."""

import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache, partial
from pathlib import Path

import torch

from benchmarks.evidence.laboratory import Laboratory
from benchmarks.suite.inputs import open_suite

Part = Callable[[Laboratory], object]  # that can be pickled; its result is dropped


def open_laboratory(folder: Path, *, say: bool = False) -> Laboratory:
    """Return the laboratory in the suite's folder; the suite's models are trained if they are not there yet."""
    return Laboratory(open_suite(folder, say=say), folder / "evidence")


def run(parts: Sequence[Part], folder: Path, processes: int) -> None:
    """Run every part once, begun in the order given, and raise what any of them raises; say what each took."""
    began_at = time.monotonic()
    spawning = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=spawning, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        jobs = {pool.submit(_run, part, folder): part for part in parts}
        try:
            for done, job in enumerate(as_completed(jobs), start=1):
                print(
                    f"{done} of {len(parts)} done, {time.monotonic() - began_at:.0f} s: "
                    f"{_tell(jobs[job])}, {job.result():.0f} s of a core",
                    flush=True,
                )
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # what has begun ends, nothing else begins
            raise


def _run(part: Part, folder: Path) -> float:
    """Run a part, and return the seconds of a core that it took."""
    laboratory, began_at = _open_once(folder), time.process_time()
    part(laboratory)
    return time.process_time() - began_at


def _tell(part: Part) -> str:
    """Return a part's name and what it is asked."""
    function, asked = (part.func, part.keywords) if isinstance(part, partial) else (part, {})
    name = f"{function.__module__.rpartition('.')[2]}.{function.__name__.removeprefix('_')}"
    return " ".join([name, *(f"{key}={value}" for key, value in asked.items() if not isinstance(value, Mapping))])


_open_once = cache(open_laboratory)  # in each process
