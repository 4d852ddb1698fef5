"""The weights that a quantized linear layer computes with, a few rows at a time: rounded to 4 or 8 bits and read out.

The same numbers, bit for bit, as `load_base` has in memory on this device, without the model. One quantity depends on a
whole tensor: the mean of its blocks' scales, which double quantization subtracts from each of them (QLoRA, arXiv
2305.14314, section 3). So a tensor waits in 4 bits until its last row was read.
"""

import math
from collections.abc import Iterable, Iterator

import torch
from bitsandbytes.functional import (
    QuantState,
    dequantize_4bit,
    dequantize_blockwise,
    get_4bit_type,
    int8_vectorwise_dequant,
    int8_vectorwise_quant,
    quantize_4bit,
    quantize_blockwise,
)
from torch import Tensor

BLOCK, NESTED_BLOCK = 64, 256  # weights that share a scale in NF4, and scales that share one in turn
CHUNK = 2**18  # numbers that are quantized at a time: as many as a core's cache holds
LEAST_SCALE = 1e-38  # of a block that is all zero


def piece_rows(columns: int, most: int) -> int:
    """How many rows to read at a time: about `most` numbers, and whole blocks of NF4."""
    unit = BLOCK // math.gcd(columns, BLOCK)
    return max(unit, most // columns // unit * unit)


def read_out(pieces: Iterable[Tensor], quantization: str) -> Iterator[Tensor]:
    """The pieces of a weight (out, in), each of `piece_rows` rows but the last, rounded as the layer rounds them.

    Pieces and results have the dtype that the layer computes in. quantization: "nf4", "int8" or "none".
    """
    if quantization == "nf4":
        yield from _nf4(pieces)
    elif quantization == "int8":
        for piece in pieces:
            values, scales, _ = int8_vectorwise_quant(piece.contiguous().to(torch.float16))
            yield int8_vectorwise_dequant(values, scales).to(piece.dtype)
    else:
        yield from pieces


def _nf4(pieces: Iterable[Tensor]) -> Iterator[Tensor]:
    quantized = [_quantize(piece.contiguous()) for piece in pieces]
    scales = torch.cat([state.absmax for _, state in quantized])
    offset = scales.mean()
    rounded = dequantize_blockwise(*quantize_blockwise(scales - offset, blocksize=NESTED_BLOCK))
    rounded += offset
    start = 0
    for packed, state in quantized:
        end = start + state.absmax.numel()
        yield dequantize_4bit(packed, _with_scales(state, rounded[start:end].contiguous()))
        start = end


def _quantize(piece: Tensor) -> tuple[Tensor, QuantState]:
    """`quantize_4bit`, to the bit, and on a CPU in a third of its time, which is most of an export's time there.

    bitsandbytes searches for each number's code among 15 bounds. Counting the bounds below it needs no branch.
    """
    if piece.device.type != "cpu" or piece.numel() % BLOCK:
        return quantize_4bit(piece, blocksize=BLOCK, quant_type="nf4")
    code = get_4bit_type("nf4", device="cpu")
    bounds = ((code[1:] + code[:-1]) / 2).tolist()
    flat = piece.view(-1, BLOCK)
    packed = torch.empty(piece.numel() // 2, dtype=torch.uint8)
    scales = torch.empty(len(flat))
    step = CHUNK // BLOCK
    for first in range(0, len(flat), step):
        blocks = flat[first : first + step].float()
        largest = blocks.abs().amax(dim=-1)
        scales[first : first + step] = largest
        scaled = (blocks * (1.0 / largest.clamp(min=LEAST_SCALE)).unsqueeze(1)).view(-1)
        above, codes = torch.empty_like(scaled, dtype=torch.bool), torch.zeros_like(scaled, dtype=torch.uint8)
        for bound in bounds:
            codes.add_(torch.gt(scaled, bound, out=above).view(torch.uint8))
        packed[first * BLOCK // 2 : (first * BLOCK + len(codes)) // 2] = (codes[::2] << 4) | codes[1::2]
    state = QuantState(scales, piece.shape, code, BLOCK, "nf4", piece.dtype)
    return packed.unsqueeze(1), state


def _with_scales(state: QuantState, scales: Tensor) -> QuantState:
    return QuantState(
        absmax=scales,
        shape=state.shape,
        code=state.code,
        blocksize=state.blocksize,
        quant_type=state.quant_type,
        dtype=state.dtype,
    )
