"""Rows to records without a file, as a stage would read them."""

from collections.abc import Iterator
from typing import Any

from lora_rlhf.data.formats import RecordKind
from lora_rlhf.data.refusals import BadRow
from lora_rlhf.data.schema import Prompt, Text, set_meta_and_origin
from lora_rlhf.data.sources import Source


class RowSource(Source[Any]):
    """A source of rows that are given; what is refused is kept in `faults`."""

    def __init__(self, rows: tuple[Any, ...], kind: RecordKind | None, **options: Any) -> None:
        self.given, self.faults = rows, list[BadRow]()
        super().__init__("rows", kind, tolerant=True, **options)

    def _open_rows(self) -> Iterator[tuple[str, Any]]:
        for number, row in enumerate(self.given, start=1):
            yield f"rows:{number}", row

    def _refuse(self, origin: str, fault: BadRow) -> None:
        self.faults.append(fault)
        super()._refuse(origin, fault)


def read(kind: RecordKind | None, *rows: Any, **options: Any) -> list[Any]:
    """The records of rows, without origin and meta. Raises the first refusal."""
    source = RowSource(rows, kind, **options)
    records = list(source)
    if source.faults:
        raise source.faults[0]
    assert source.used == source.read and source.records == len(records)
    for record in records:
        if not isinstance(record, Text):
            set_meta_and_origin(record if isinstance(record, Prompt) else record.prompt, {}, "")
    return records
