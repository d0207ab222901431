"""Runs parts of experiments in processes of one thread each; what they find lies in a folder that they share."""

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from pathlib import Path

import torch

from benchmarks.evidence.laboratory import Laboratory
from benchmarks.suite.inputs import open_suite

Part = Callable[[Laboratory], object]  # that can be pickled; its result is dropped


def open_laboratory(folder: Path, *, say: bool = False) -> Laboratory:
    """Return the laboratory in the suite's folder; the suite's models are trained if they are not there yet."""
    return Laboratory(open_suite(folder, say=say), folder / "evidence")


def run(parts: Sequence[Part], folder: Path, processes: int) -> None:
    """Run every part once, begun in the order given, and raise what any of them raises; say how far it is."""
    began_at = time.monotonic()
    spawning = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=spawning, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for done, job in enumerate(as_completed([pool.submit(_run, part, folder) for part in parts]), start=1):
            job.result()
            print(f"{done} of {len(parts)} done, {time.monotonic() - began_at:.0f} s", flush=True)


def _run(part: Part, folder: Path) -> None:
    part(_open_once(folder))


_open_once = cache(open_laboratory)  # in each process
