"""Rows of a dataset on the hub, streamed, or of a folder that the library datasets saved."""

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
    return numbered_rows(dataset, full_name)


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
    _require_own_files(path)
    try:
        dataset = load_from_disk(str(path))
    except Exception as error:  # OSError, ValueError, KeyError, ArrowInvalid ... for a folder that is not whole
        raise UserError(f"{path}: cannot be loaded as what save_to_disk wrote: {error}") from error
    return numbered_rows(dataset, str(path))


def _require_own_files(folder: Path) -> None:
    """UserError if the tables that a saved dataset lists are not plain files in its own folder."""
    way_out = "give a folder that save_to_disk wrote"
    tables = read_object(folder / "state.json", way_out).get("_data_files")
    names = [table.get("filename") if isinstance(table, dict) else None for table in tables or ()]
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise UserError(f"{folder / 'state.json'}: lists the file {quote(name)}, not one of its folder; {way_out}")
        try:
            open_file(folder / name).close()
        except OSError as error:
            raise UserError(f"{folder}: cannot be loaded as what save_to_disk wrote: {error}") from error


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
