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
CHUNK_NUMBERS = 2**18  # numbers that are quantized at a time: as many as a core's cache holds
LEAST_SCALE = 1e-38  # of a block that is all zero


def rows_per_piece(columns: int, max_numbers: int) -> int:
    """The number of rows to read at a time: about `max_numbers` numbers, and whole blocks of NF4."""
    unit = BLOCK // math.gcd(columns, BLOCK)
    return max(unit, max_numbers // columns // unit * unit)


def round_pieces(pieces: Iterable[Tensor], quantization: str) -> Iterator[Tensor]:
    """Yields the pieces of a weight (out, in), rounded as the quantized layer rounds them.

    Each piece has `rows_per_piece` rows but the last. Pieces and results have the dtype in which the layer computes.
    quantization: "nf4", "int8" or "none".
    """
    if quantization == "nf4":
        yield from _round_nf4(pieces)
    elif quantization == "int8":
        for piece in pieces:
            values, scales, _ = int8_vectorwise_quant(piece.contiguous().to(torch.float16))
            yield int8_vectorwise_dequant(values, scales).to(piece.dtype)
    else:
        yield from pieces


def _round_nf4(pieces: Iterable[Tensor]) -> Iterator[Tensor]:
    """Rounds the pieces to NF4 with double quantization; waits for the last piece, since the scales share one mean."""
    quantized = [_quantize_nf4(piece.contiguous()) for piece in pieces]
    scales = torch.cat([state.absmax for _, state in quantized])
    offset = scales.mean()
    rounded_scales = dequantize_blockwise(*quantize_blockwise(scales - offset, blocksize=NESTED_BLOCK))
    rounded_scales += offset
    start = 0
    for packed, state in quantized:
        end = start + state.absmax.numel()
        yield dequantize_4bit(packed, _replace_scales(state, rounded_scales[start:end].contiguous()))
        start = end


def _quantize_nf4(piece: Tensor) -> tuple[Tensor, QuantState]:
    """The same bits as `quantize_4bit`; on a CPU in a third of its time, which is most of an export's time there.

    bitsandbytes searches each number's code among 15 bounds. Counting the bounds below the number needs no branch.
    """
    if piece.device.type != "cpu" or piece.numel() % BLOCK:
        return quantize_4bit(piece, blocksize=BLOCK, quant_type="nf4")
    code = get_4bit_type("nf4", device="cpu")
    bounds = ((code[1:] + code[:-1]) / 2).tolist()
    flat = piece.view(-1, BLOCK)
    packed = torch.empty(piece.numel() // 2, dtype=torch.uint8)
    scales = torch.empty(len(flat))
    step = CHUNK_NUMBERS // BLOCK
    for start in range(0, len(flat), step):
        blocks = flat[start : start + step].float()
        largest_values = blocks.abs().amax(dim=-1)
        scales[start : start + step] = largest_values
        scaled = (blocks * (1.0 / largest_values.clamp(min=LEAST_SCALE)).unsqueeze(1)).view(-1)
        is_above, codes = torch.empty_like(scaled, dtype=torch.bool), torch.zeros_like(scaled, dtype=torch.uint8)
        for bound in bounds:
            codes.add_(torch.gt(scaled, bound, out=is_above).view(torch.uint8))
        packed[start * BLOCK // 2 : (start * BLOCK + len(codes)) // 2] = (codes[::2] << 4) | codes[1::2]
    state = QuantState(scales, piece.shape, code, BLOCK, "nf4", piece.dtype)
    return packed.unsqueeze(1), state


def _replace_scales(state: QuantState, scales: Tensor) -> QuantState:
    """The quantization state with other block scales."""
    return QuantState(
        absmax=scales,
        shape=state.shape,
        code=state.code,
        blocksize=state.blocksize,
        quant_type=state.quant_type,
        dtype=state.dtype,
    )
