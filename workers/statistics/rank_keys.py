"""Magnitudes as integers: the bits of non-negative float32 numbers are ordered like the numbers."""

import numpy as np
import torch

from workers.contract import Piece
from workers.numerics.fused import Keys

LARGEST_KEY = int(np.iinfo(np.int32).max)


def keys_of(piece: Piece) -> Keys:
    """Return the bits of |τ|, [n_models, m]; without a base model τ is the model itself."""
    keys = np.empty(piece.finetuned.shape, dtype=np.int32)
    fill_keys(piece, keys)
    return keys


def fill_keys(piece: Piece, keys: Keys) -> None:
    """Write the bits of |τ| into keys, [n_models, m]."""
    deltas = torch.from_numpy(keys.view(np.float32))
    if piece.base is None:
        deltas.copy_(piece.finetuned)
    else:
        torch.sub(piece.finetuned, piece.base, out=deltas)
    np.bitwise_and(keys, LARGEST_KEY, out=keys)


def magnitude_of(key: int) -> float:
    """Return the magnitude that has a key."""
    return float(np.array(key, dtype=np.int32).view(np.float32))
