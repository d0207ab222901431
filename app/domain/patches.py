"""Patches of a multitask artifact: where they lie, what they are called, and how large they become at most.

The file format is docs/patches.md; the codecs are workers/patches.py.
"""

PATCH_FORMAT = "amalgam-patch"
PATCH_FORMAT_VERSION = 1
PATCH_FOLDER = "patches"
BASE_FILE = "base.safetensors"


def patch_path(task: str) -> str:
    """Return the path of a task's patch within its artifact."""
    return f"{PATCH_FOLDER}/{task}.safetensors"
