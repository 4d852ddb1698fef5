"""Groups items with equal keys, wherever in a file they are: on disk, so that memory does not grow with them."""

from array import array
from collections.abc import Iterator
from typing import Any

MAX_ITEMS = 1000  # of a group; a larger group is given as several


class Groups:
    """JSON values grouped by key: each costs 16 bytes of memory, and its text on disk."""

    def __init__(self) -> None:
        from lora_rlhf.data.spool import Spool

        self._keys = array("Q")
        self._items: Spool[Any] = Spool(lambda item: item, lambda item: item)

    def add(self, key: int, item: Any) -> None:
        """Adds an item. key: 64 bits, such as `labels.fingerprint` gives."""
        self._keys.append(key)
        self._items.append(item)

    def __iter__(self) -> Iterator[list[Any]]:
        """Yields the items of each key, in the order of the keys' first items; at most MAX_ITEMS at a time."""
        import numpy as np

        keys = np.frombuffer(self._keys, dtype=np.uint64) if self._keys else np.empty(0, np.uint64)
        order = np.argsort(keys, kind="stable")
        starts = np.flatnonzero(np.r_[True, keys[order][1:] != keys[order][:-1]]) if len(order) else order
        ends = np.r_[starts[1:], len(order)]
        for group in np.argsort(order[starts], kind="stable"):
            indices = order[starts[group] : ends[group]]
            for first in range(0, len(indices), MAX_ITEMS):
                yield [self._items[int(index)] for index in indices[first : first + MAX_ITEMS]]
