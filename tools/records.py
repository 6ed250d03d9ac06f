"""How the measurements keep their records: right and wrong of many clips in few letters, and files written whole."""

import os
from pathlib import Path

import numpy as np


def bits(right) -> str:
    """Right and wrong as hex digits, which `unpack` reads."""
    return np.packbits(np.asarray(right, dtype=bool)).tobytes().hex()


def unpack(hexadecimal: str, n: int) -> np.ndarray:
    """Right and wrong of n clips: (n,) of bool."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(hexadecimal), np.uint8), count=n).astype(bool)


def write_whole(path: Path, text: str) -> None:
    """Put a finished file in the place of the old one at once."""
    draft = path.with_suffix(".part")
    draft.write_text(text)
    os.replace(draft, path)
