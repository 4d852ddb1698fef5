"""Matrices that bitsandbytes stored in nf4: read out of a file as they are read out of memory."""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from bitsandbytes.functional import QuantState, dequantize_4bit
from torch import Tensor

from lora_rlhf.model.tensor_files import Stored

STATE = ".quant_state.bitsandbytes__nf4"  # names, behind that of a matrix, of what is needed to read it out
SCALES = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")


@dataclass(frozen=True)
class StoredNF4:
    """A matrix (out, in) in nf4 with double quantization. companions: its state and scales, by the ends of their names.

    dtype: what it is read out in.
    """

    codes: Stored
    companions: tuple[tuple[str, Stored], ...]
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def path(self) -> Path:
        return self.codes.path

    @property
    def name(self) -> str:
        return self.codes.name

    def rows(self, first: int, end: int) -> Tensor:
        """The numbers of some rows. Rows of one matrix should be asked for one after the other."""
        return _read_out(self)[first:end]


def with_matrices(index: Mapping[str, Stored]) -> dict[str, Stored | StoredNF4]:
    """The tensors of a base's files, with each matrix in nf4 in place of its codes, state and scales."""
    tensors: dict[str, Stored | StoredNF4] = dict(index)
    for key in index:
        if key.endswith(STATE):
            name = key.removesuffix(STATE)
            companions = tuple((end, index[name + end]) for end in (STATE, *SCALES))
            state = json.loads(bytes(_whole(index[key]).tolist()))
            dtype: torch.dtype = getattr(torch, state["dtype"])
            tensors[name] = StoredNF4(index[name], companions, dtype, tuple(state["shape"]))
            for end, _ in companions:
                del tensors[name + end]
    return tensors


@functools.lru_cache(maxsize=1)
def _read_out(matrix: StoredNF4) -> Tensor:
    parts = {end.removeprefix("."): _whole(stored) for end, stored in matrix.companions}
    state = QuantState.from_dict(parts, device=torch.device("cpu"))
    values: Tensor = dequantize_4bit(_whole(matrix.codes), state)
    return values


def _whole(stored: Stored) -> Tensor:
    return stored.rows(0, stored.shape[0])
