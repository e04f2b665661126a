"""The arrays behind `tests/golden`. `python tests/golden_leaves.py --regenerate` rewrites it.

Regenerating is right only together with a new number for the leaf encoding.
"""

from __future__ import annotations

import sys
from pathlib import Path

import ml_dtypes
import numpy as np

from brainstore.packs import pack
from brainstore.tensors import Tensor, encode

LEAF_FOLDER = Path(__file__).parent / "golden" / "leaf"
PACK_FILE = Path(__file__).parent / "golden" / "pack" / "three_leaves.safetensors"

_NAN_WITH_PAYLOAD = np.array([0x7FC12345, 0x80000000, 0xFF800001], np.uint32).view(np.float32)

GOLDEN = {
    "float32": (
        Tensor.of(np.arange(6, dtype=np.float32).reshape(2, 3)),
        "blake3:10b791cbd065bfba6812ea7cf841216427f1e2a9cd0790d3fa2ea7acf6b2670c",
    ),
    "float32_nan": (
        Tensor.of(_NAN_WITH_PAYLOAD),
        "blake3:a7f207deca9c53f12f9a1d2ae64bd086f36091293d3726b407cba259afb1a0ed",
    ),
    "float64_scalar": (
        Tensor.of(np.array(0.1)),
        "blake3:c54ec90b7b7fdf573e723ed34ac9567d3838e226972cf288bc04d8722cf216ac",
    ),
    "bfloat16": (
        Tensor.of(np.array([1.5, -2.0], ml_dtypes.bfloat16)),
        "blake3:451e56a9873aec72d5a192abee70cce613a13c4d615e52f334cb5191f072a82d",
    ),
    "float8_e4m3fn": (
        Tensor.of(np.array([1.5, -2.0], ml_dtypes.float8_e4m3fn)),
        "blake3:dc1cfdaa50aa88cf82c7da0cc3c292c96f724904bce6444c40fb8353f817c2b6",
    ),
    "float8_e3m4": (
        Tensor.of(np.array([1.5, -2.0], ml_dtypes.float8_e3m4)),
        "blake3:05b52de987b842cdbe02598bddd6393e74ccfac2884170c521d56fee31f9a6d9",
    ),
    "float4_e2m1fn": (
        Tensor.of(np.array([1.5, -2.0], ml_dtypes.float4_e2m1fn)),
        "blake3:07a887d51070fb44f9d30cdf9c22c54f1518d917815ab723e7e83ec0bb3b1804",
    ),
    "int4": (
        Tensor.of(np.array([[-8, -1], [0, 7]], ml_dtypes.int4)),
        "blake3:b7f8f5f41ee991032dc6df8fb70835e0e8551aa95375b5b1f185bddbe1119230",
    ),
    "uint2": (
        Tensor.of(np.array([0, 1, 2, 3], ml_dtypes.uint2)),
        "blake3:527edf324e9d6745da17d6ea2ca862a2304075b44e3858412d3982e97e70fec6",
    ),
    "bool_empty": (
        Tensor.of(np.zeros((0, 3), bool)),
        "blake3:a957d4daae4401def24798d7bf36a28fcd3118ad51e10bcbdbc8022c7a4b341a",
    ),
    "complex64": (
        Tensor.of(np.array([1 + 2j], np.complex64)),
        "blake3:1e20d9f9339195d5f0a031a17266ca7c2d7ac87e1a480367764638f8fc3ff48e",
    ),
    "complex128": (
        Tensor.of(np.array([[1 + 2j, -3j]])),
        "blake3:2a30bc33c550f4e70cb9ab031f39ed5c2546fa2c5c8c590835fd618b7ac961b1",
    ),
    "key": (
        Tensor.of_key("threefry2x32", (), np.array([0, 7], np.uint32)),
        "blake3:6bef41f86ad61fe9a4d71de98664a64cab8609c222d6ca732f502f96395cabf4",
    ),
}

_PACKED = ["float32", "int4", "bool_empty"]
GOLDEN_PACK = (
    [GOLDEN[name][0] for name in _PACKED],
    "blake3:c49952b4ffbb6c2b7750d84776099843cf570e85241e9bd3dd332ede8cd5d303",
)


def regenerate() -> None:
    for name, (tensor, _) in GOLDEN.items():
        (LEAF_FOLDER / f"{name}.safetensors").write_bytes(b"".join(encode(tensor)))
    [blob] = pack(zip(_PACKED, GOLDEN_PACK[0], strict=True)).blobs
    PACK_FILE.write_bytes(b"".join(blob))


if __name__ == "__main__" and "--regenerate" in sys.argv:
    regenerate()
