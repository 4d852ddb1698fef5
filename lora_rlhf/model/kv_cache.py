"""A key-value cache of fixed slots, written in place: each row has its own length, and no growth moves anything."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin


@dataclass
class View:
    """The part of a cache in a forward pass: its first `rows` slots and first `columns` columns.

    `position` (slots,): the column to which each row's token is written. The layers see changes at once.
    """

    slots: int
    width: int
    position: Tensor
    rows: int
    columns: int


class SlotCache(Cache):
    """Memory for `slots` sequences of up to `width` tokens. The token at position p is in column p of its row.

    A forward pass reads one token of each row in view, writes it to its column and attends to the columns in view.
    The columns after a row's position hold values of earlier sequences and must be masked; they are finite.
    """

    def __init__(self, num_layers: int, width: int, position: Tensor) -> None:
        slots = len(position)
        self.view = View(slots, width, position, slots, width)
        super().__init__(layers=[_SlotLayer(self.view) for _ in range(num_layers)])

    def set_view(self, rows: int, columns: int) -> None:
        """Sets the part of the cache for the next forward passes."""
        self.view.rows, self.view.columns = rows, columns

    def copy_prompts(self, prompt_cache: DynamicCache, rows: Tensor, slots: Tensor) -> None:
        """Copies rows (n,) of the cache of right-padded prompts to the beginning of slots (n,)."""
        for layer, source in zip(self.layers, prompt_cache.layers, strict=True):
            layer.lazy_initialization(source.keys, source.values)
            length = source.keys.shape[2]
            layer.keys[slots, :, :length] = source.keys[rows]
            layer.values[slots, :, :length] = source.values[rows]

    def move(self, sources: Tensor, targets: Tensor, columns: int) -> None:
        """Copies the first columns of slots (n,) to other slots (n,)."""
        for layer in self.layers:
            layer.keys[targets, :, :columns] = layer.keys[sources, :, :columns]
            layer.values[targets, :, :columns] = layer.values[sources, :, :columns]


class _SlotLayer(CacheLayerMixin):
    """One layer's keys and values, (slots, heads, width, size of a head) each."""

    is_sliding = False
    is_initialized: bool

    def __init__(self, view: View) -> None:
        super().__init__()
        self._view = view  # not the cache: it holds this layer, and a cycle would keep the memory after its end
        self._slot_indices = torch.arange(view.slots, device=view.position.device)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocates zeros in the shape and precision of the states: masked values must be finite too."""
        if self.is_initialized:
            return
        slots, width = self._view.slots, self._view.width
        self.keys = key_states.new_zeros(slots, key_states.shape[1], width, key_states.shape[3])
        self.values = value_states.new_zeros(slots, value_states.shape[1], width, value_states.shape[3])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_args: object, **_kw: object) -> tuple[Tensor, Tensor]:
        """Writes states (rows, heads, 1, size); returns what the rows may attend to, (rows, heads, columns, size)."""
        rows, columns = self._view.rows, self._view.columns
        slot_indices, position = self._slot_indices[:rows], self._view.position[:rows]
        self.keys[slot_indices, :, position] = key_states[:, :, 0]
        self.values[slot_indices, :, position] = value_states[:, :, 0]
        return self.keys[:rows, :, :columns], self.values[:rows, :, :columns]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._view.columns, 0

    def get_seq_length(self) -> int:
        return self._view.columns - 1

    def get_max_length(self) -> int:
        return self._view.width
