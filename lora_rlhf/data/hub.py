"""Rows of a dataset on the hub, streamed, or of a folder that the library datasets saved."""

import re
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lora_rlhf.data.locate import HubDataset
from lora_rlhf.data.refusals import Damaged
from lora_rlhf.data.tables import to_plain_row
from lora_rlhf.system.errors import UserError
from lora_rlhf.system.network import hub_fault, offline
from lora_rlhf.system.plain_files import open_file
from lora_rlhf.system.untrusted import quote, read_object

# What a row holds as it is. Other types are decoded from files, which opens any path or address that a row names.
PLAIN_TYPES = {
    *("Value", "ClassLabel", "Json", "List", "LargeList", "Sequence", "Translation", "TranslationVariableLanguages"),
    *("Array2D", "Array3D", "Array4D", "Array5D"),
}
WAY_OUT = "give a folder that save_to_disk wrote"


def hub_rows(hub: HubDataset) -> Iterator[tuple[str, Any]]:
    """Yields ("owner/name:split row N", row), N from 1, for each row of a hub dataset, as it arrives.

    Raises UserError if the hub cannot be reached (within seconds), or has no such dataset, config or split. If the
    connection breaks later, the last row is a Damaged. A dataset's own code is never run.
    """
    offline_setting = offline()
    if offline_setting is None:
        _require_reachable_hub(hub.name)
    from datasets import load_dataset

    full_name = f"{hub.name}:{hub.config}:{hub.split}" if hub.config else f"{hub.name}:{hub.split}"
    try:
        dataset = load_dataset(hub.name, hub.config, split=hub.split, streaming=True)
    except Exception as error:  # the library raises a dozen unrelated types for "not there" and "no access"
        location = f"in the cache ({offline_setting} is set)" if offline_setting else "on the hub"
        raise UserError(
            f"{full_name}: no such file here, and it cannot be loaded as a dataset {location}: {error}\n"
            "A hub dataset is owner/name, owner/name:split or owner/name:config:split."
        ) from error
    return numbered_rows(_without_decoding(dataset), full_name)


def saved_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yields ("path row N", row), N from 1, for each row that `save_to_disk` wrote to a folder.

    Of a folder with several splits the split "train" is read; name a folder in it to read another split. Raises
    UserError if there is no such split, or if the folder cannot be loaded.
    """
    from datasets import load_from_disk

    if (path / "dataset_dict.json").is_file():
        splits = sorted(folder.name for folder in path.iterdir() if folder.is_dir())
        if "train" not in splits:
            folders = ", ".join(str(path / split) for split in splits)
            raise UserError(f"{path}: no split named train; give the folder of one split: {folders}")
        path = path / "train"
    tables = _own_tables(path)
    try:
        for table in tables:
            _require_bounded_table(table)
        dataset = load_from_disk(str(path))
    except UserError:
        raise
    except Exception as error:  # OSError, ValueError, KeyError, ArrowInvalid ... for a folder that is not whole
        raise UserError(f"{path}: cannot be loaded as what save_to_disk wrote: {error}") from error
    return numbered_rows(_without_decoding(dataset), str(path))


def _own_tables(folder: Path) -> list[Path]:
    """The tables that a saved dataset lists. UserError if they are not plain files in its own folder."""
    listed = read_object(folder / "state.json", WAY_OUT).get("_data_files")
    read_object(folder / "dataset_info.json", WAY_OUT)  # within limits, which the library has not
    names = [table.get("filename") if isinstance(table, dict) else None for table in listed or ()]
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise UserError(f"{folder / 'state.json'}: lists the file {quote(name)}, not one of its folder; {WAY_OUT}")
        try:
            open_file(folder / name).close()
        except OSError as error:
            raise UserError(f"{folder}: cannot be loaded as what save_to_disk wrote: {error}") from error
    return [folder / str(name) for name in names]


def _require_bounded_table(path: Path) -> None:
    """UserError for a table that takes more memory than its file: the library reads all of it at once.

    Rows of a file as it lies take none. A compressed batch is refused, and one with more rows than the file has bytes
    (columns of nothing take no bytes): `save_to_disk` writes neither. Raises ArrowInvalid, OSError or struct.error for
    what is no table.
    """
    import pyarrow

    num_rows = 0
    with pyarrow.memory_map(str(path)) as file:
        for message in pyarrow.ipc.MessageReader.open_stream(file):
            raw = message.metadata.to_pybytes()
            header = _follow(raw, _field(raw, _follow(raw, 0), 2))
            if message.type == "dictionary":
                header = _follow(raw, _field(raw, header, 1))
            elif message.type != "record batch":
                continue
            if _field(raw, header, 3):
                raise UserError(f"{path}: is compressed, so its size in memory is not known; {WAY_OUT}")
            length = _field(raw, header, 0)
            num_rows += struct.unpack_from("<q", raw, length)[0] if length else 0
        if num_rows > file.size():
            raise UserError(f"{path}: claims {num_rows:,} rows, more than its {file.size():,} bytes hold; {WAY_OUT}")


# Arrow's metadata are flatbuffers: a table begins with the distance to the list of its fields' places.
# https://arrow.apache.org/docs/format/Columnar.html#recordbatch-message; a Message has its header as field 2, a
# DictionaryBatch its RecordBatch as field 1, a RecordBatch its length as field 0 and its compression as field 3.


def _follow(raw: bytes, place: int) -> int:
    return place + int(struct.unpack_from("<I", raw, place)[0])


def _field(raw: bytes, table: int, number: int) -> int:
    """Where a field of a table begins; 0 if the table has none."""
    fields = table - struct.unpack_from("<i", raw, table)[0]
    size = struct.unpack_from("<H", raw, fields)[0]
    offset = struct.unpack_from("<H", raw, fields + 4 + 2 * number)[0] if 4 + 2 * number < size else 0
    return table + offset if offset else 0


def _without_decoding(dataset: Any) -> Any:
    """The dataset, in which pictures, sounds and the like stay bytes and names of files, which are not opened."""
    if dataset.features is None or set(re.findall(r"'_type': '(\w+)'", str(dataset.features.to_dict()))) <= PLAIN_TYPES:
        return dataset
    return (dataset.to_iterable_dataset() if hasattr(dataset, "to_iterable_dataset") else dataset).decode(False)


def numbered_rows(dataset: Iterable[dict[str, Any]], name: str) -> Iterator[tuple[str, Any]]:
    """Yields ("name row N", row), N from 1, as plain Python values, for rows that are not lines of a file."""
    number = 0
    try:
        for number, row in enumerate(dataset, start=1):
            yield f"{name} row {number}", to_plain_row(row)
    except Exception as error:  # network, decoding, a broken shard: whatever the library raises, the rest is not there
        yield f"{name} row {number + 1}", Damaged("the dataset cannot be read further", str(error))


def _require_reachable_hub(name: str) -> None:
    """UserError if the hub does not answer, with the ways to read the dataset without a network."""
    # load_dataset would try for half a minute and then report another fault
    if fault := hub_fault():
        raise UserError(
            f"{name}: no such file or folder here, and the hub cannot be reached ({fault}). Without a "
            f"network: on another machine run `hf download --repo-type dataset {name} --local-dir data/"
            f"{name.split('/')[1]}`, copy that folder here and give it, or a pattern such as 'FOLDER/**/*train*'. "
            "If the dataset is in the cache already, set HF_HUB_OFFLINE=1."
        )
