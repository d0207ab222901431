"""Runs in mergekit's own virtual environment: merges documents as `mergekit-yaml` does, one after the other.

Usage: python oracle_mergekit_documents.py ORDERS.json; an order names a document (its models are paths) and an output
folder.
"""

import json
import sys
from pathlib import Path

import torch
import yaml
from mergekit.config import MergeConfiguration  # type: ignore[import-not-found]
from mergekit.merge import run_merge  # type: ignore[import-not-found]
from mergekit.options import MergeOptions  # type: ignore[import-not-found]


def main() -> None:
    """Merge every document."""
    torch.set_num_threads(1)
    for order in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        document = yaml.safe_load(Path(order["document"]).read_text(encoding="utf-8"))
        options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True)
        run_merge(MergeConfiguration.model_validate(document), order["output"], options)


if __name__ == "__main__":
    main()
