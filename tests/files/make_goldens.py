"""Makes goldens.safetensors: what the reference implementations say about element types.

    pip install gguf safetensors numpy
    python3 tests/files/make_goldens.py

For every quantised type: `<type>.blocks` (u8 storage blocks) and `<type>.values` (f32, from
gguf.quants.dequantize). Half of the blocks hold random bits, with scales over the whole range of
f16; for blocks of 32 the other half were quantised from normal data by the package. Also f32 values with
their f16 (numpy) and bf16 (gguf) conversions. NaNs are kept out of the quantised values' scales
only where numpy's result would depend on the processor.
"""

import pathlib
import warnings

import gguf
import numpy as np
from gguf import GGMLQuantizationType as T
from safetensors.numpy import save_file

warnings.filterwarnings("ignore", category=RuntimeWarning)
rng = np.random.default_rng(20240611)

# Byte positions of the f16 numbers in a block.
HALVES = {
    T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0],
    T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208],
}  # fmt: skip
# Zero, smallest and largest subnormal, smallest and largest normal, infinity, and negatives.
EXTREME = [0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x8400, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00]

tensors = {}
for kind, places in HALVES.items():
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    count = 20 if elements == 256 else 64
    blocks = rng.integers(0, 256, (count, size), dtype=np.uint8)
    for place in places:
        scales = rng.integers(0, 0x7C00, count, dtype=np.uint16) | (rng.integers(0, 2, count, dtype=np.uint16) << 15)
        scales[: len(EXTREME)] = rng.permutation(EXTREME)
        blocks[:, place : place + 2] = scales[:, None].view(np.uint8)
    if elements == 32:  # the package quantises these
        data = rng.standard_normal((count // 2, 32)) * 10.0 ** rng.uniform(-6, 4, (count // 2, 1))
        blocks[count // 2 :] = gguf.quantize(data.astype(np.float32), kind)
    name = kind.name.lower()
    tensors[f"{name}.blocks"] = blocks
    tensors[f"{name}.values"] = gguf.dequantize(blocks, kind).reshape(-1)

bits = rng.integers(0, 2**32, 3000, dtype=np.uint32)
near = rng.uniform(-30, 20, 3000)
values = np.concatenate(
    [
        bits.view(np.float32),
        (rng.choice([-1, 1], 3000) * 2.0**near).astype(np.float32),
        np.array([0, -0.0, 65504, 65519.99, 65520, -65520, 2**-24, 2**-25, 3 * 2**-26, np.inf, -np.inf, np.nan], np.float32),
    ]
)
tensors["f32.values"] = values
tensors["f32.as_f16"] = values.astype(np.float16)
tensors["f32.as_bf16_bits"] = gguf.quantize(values.reshape(1, -1), T.BF16).reshape(-1).view(np.int16)

save_file(tensors, pathlib.Path(__file__).with_name("goldens.safetensors"))
