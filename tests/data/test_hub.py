"""Hub datasets and saved folders give plain rows; without a network it is said at once, with the way out."""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pyarrow
import pytest

from lora_rlhf.data import hub
from lora_rlhf.data.containers import source_rows
from lora_rlhf.data.hub import hub_rows, numbered_rows, saved_rows
from lora_rlhf.data.locate import HubDataset
from lora_rlhf.data.refusals import BadRow, Damaged
from lora_rlhf.system import network
from lora_rlhf.system.errors import UserError

NAME = HubDataset("owner/name", None, "train")
PROXY_VARIABLES = [
    name for word in ("http", "https", "all", "no") for name in (f"{word}_proxy", f"{word}_PROXY".upper())
]


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*network.OFFLINE_VARIABLES, *PROXY_VARIABLES):
        monkeypatch.delenv(name, raising=False)


@contextmanager
def server(status: int) -> Iterator[tuple[str, list[str]]]:
    """(address, paths that were asked for) of a web server that answers everything with this status."""
    asked: list[str] = []

    class Answer(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    listening = HTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.server_port}", asked
    finally:
        listening.shutdown()
        thread.join()
        listening.server_close()


def test_without_a_network_the_way_out_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, and nobody listens
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(UserError, match="cannot be reached") as fault:
            hub_rows(NAME)
    assert time.monotonic() - began < 1
    for way_out in ("no such file", "hf download --repo-type dataset owner/name", "HF_HUB_OFFLINE=1", "127.0.0.1"):
        assert way_out in str(fault.value)


def test_a_hub_that_does_not_answer_is_waited_for_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "PROBE_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(UserError, match="cannot be reached"):
            hub_rows(NAME)


@pytest.mark.parametrize(("status", "reached"), [(200, True), (401, True), (404, True), (502, False), (503, False)])
def test_the_environments_proxy_is_asked(monkeypatch: pytest.MonkeyPatch, status: int, reached: bool) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    with server(status) as (address, asked):
        monkeypatch.setenv("http_proxy", address)
        if reached:
            hub._require_reachable_hub("owner/name")
        else:
            with pytest.raises(UserError, match=f"cannot be reached.*{status}"):
                hub._require_reachable_hub("owner/name")
    assert [path.rstrip("/") for path in asked] == ["http://hub.invalid"]


def test_a_proxy_that_the_probe_cannot_use_is_left_to_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1")
    hub._require_reachable_hub("owner/name")


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """owner/name in the library's cache, with the splits train and test, and the library offline."""
    folder = tmp_path / "cache/owner___name/default/0.0.0/0123456789abcdef"
    folder.mkdir(parents=True)
    splits = {}
    for split in ("train", "test"):
        rows = datasets.Dataset.from_list([{"prompt": f"{split} {number}", "n": number / 2} for number in range(3)])
        rows.save_to_disk(str(tmp_path / split))
        (tmp_path / split / "data-00000-of-00001.arrow").rename(folder / f"name-{split}.arrow")
        splits[split] = {"name": split, "num_bytes": 1, "num_examples": 3, "dataset_name": "name"}
    info = json.loads((tmp_path / "train/dataset_info.json").read_text())
    info |= {"config_name": "default", "dataset_name": "name", "splits": splits, "version": {"version_str": "0.0.0"}}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def test_rows_of_a_dataset_in_the_cache(cached: None) -> None:
    expected = [
        (f"owner/name:test row {number + 1}", {"prompt": f"test {number}", "n": number / 2}) for number in range(3)
    ]
    assert list(source_rows("owner/name:test")) == expected


def test_a_wrong_split_or_config_names_those_that_are_there(cached: None) -> None:
    with pytest.raises(UserError, match=r"owner/name:training: .*(train.*test|test.*train)"):
        list(hub_rows(HubDataset("owner/name", None, "training")))
    with pytest.raises(UserError, match=r"(?s)owner/name:other:train: .*default"):
        list(hub_rows(HubDataset("owner/name", "other", "train")))
    with pytest.raises(UserError, match=r"(?s)owner/none:train: no such file here.*owner/name:config:split"):
        list(hub_rows(HubDataset("owner/none", None, "train")))


def test_rows_are_plain_and_a_broken_stream_is_damage() -> None:
    def rows() -> Iterator[dict[str, Any]]:
        yield {"text": "a", "when": datetime(2024, 5, 6), "x": float("nan")}
        yield {"text": "b", "image": object()}
        raise ConnectionError("reset by peer")

    (one, plain), (two, refused), (three, damage) = numbered_rows(rows(), "owner/name:train")
    assert (one, plain) == ("owner/name:train row 1", {"text": "a", "when": "2024-05-06T00:00:00", "x": None})
    assert two.endswith("row 2") and isinstance(refused, BadRow) and "object" in refused.detail
    assert three.endswith("row 3") and isinstance(damage, Damaged) and "reset by peer" in str(damage)


def test_saved_folders(tmp_path: Path) -> None:
    one = datasets.Dataset.from_list([{"prompt": "a", "m": [{"role": "user", "content": "b"}]}])
    one.save_to_disk(str(tmp_path / "one"))
    expected = {"prompt": "a", "m": [{"role": "user", "content": "b"}]}
    assert list(source_rows(str(tmp_path / "one"))) == [(f"{tmp_path}/one row 1", expected)]
    datasets.DatasetDict({"train": one, "test": one.select([0, 0])}).save_to_disk(str(tmp_path / "many"))
    assert [row for _, row in source_rows(str(tmp_path / "many"))] == [expected]
    assert [row for _, row in source_rows(str(tmp_path / "many/test"))] == [expected, expected]
    datasets.DatasetDict({"fit": one}).save_to_disk(str(tmp_path / "named"))
    with pytest.raises(UserError, match=r"no split named train.*named/fit"):
        list(saved_rows(tmp_path / "named"))
    (tmp_path / "one/data-00000-of-00001.arrow").write_bytes(b"broken")
    with pytest.raises(UserError, match="one: cannot be loaded"):
        list(saved_rows(tmp_path / "one"))


def test_a_saved_folder_reads_no_file_of_another_folder(tmp_path: Path) -> None:
    """A stranger's state.json that names a file outside, and a link or a pipe in the place of a table."""
    for name in ("one", "outside"):
        datasets.Dataset.from_list([{"prompt": name}]).save_to_disk(str(tmp_path / name))
    table, state = tmp_path / "one/data-00000-of-00001.arrow", tmp_path / "one/state.json"
    table.unlink()
    table.symlink_to(tmp_path / "outside" / table.name)
    with pytest.raises(UserError, match="is a symbolic link"):
        list(saved_rows(tmp_path / "one"))
    table.unlink()
    os.mkfifo(table)
    with pytest.raises(UserError, match="not a file"):
        list(saved_rows(tmp_path / "one"))
    original = state.read_text()
    for stranger in (f"../outside/{table.name}", str(tmp_path / "outside" / table.name), "..", "", "x\\u001b/y"):
        state.write_text(original.replace(table.name, stranger))
        with pytest.raises(UserError, match=r"not one of its folder|not a file"):
            list(saved_rows(tmp_path / "one"))


def write_table(path: Path, table: pyarrow.Table, compression: str | None = None) -> None:
    options = pyarrow.ipc.IpcWriteOptions(compression=compression)
    with pyarrow.ipc.new_stream(str(path), table.schema, options=options) as stream:
        stream.write_table(table)


@pytest.mark.parametrize("dictionary", [False, True])
def test_a_saved_folder_takes_no_more_memory_than_its_files(dictionary: bool, tmp_path: Path) -> None:
    """Compressed tables, also in dictionaries, and columns of nothing with more rows than there is time."""
    datasets.Dataset.from_list([{"prompt": "a"}]).save_to_disk(str(tmp_path / "one"))
    path = tmp_path / "one/data-00000-of-00001.arrow"
    column = pyarrow.array(["a" * 10**6, "b"])
    table = pyarrow.table({"prompt": column.dictionary_encode() if dictionary else column})
    write_table(path, table)
    assert len(list(saved_rows(tmp_path / "one"))) == 2
    for compression in ("zstd", "lz4"):
        write_table(path, table, compression)
        with pytest.raises(UserError, match=r"arrow: is compressed"):
            list(saved_rows(tmp_path / "one"))
    write_table(path, pyarrow.table({"prompt": pyarrow.Array.from_buffers(pyarrow.null(), 2**31 - 1, [None])}))
    with pytest.raises(UserError, match=r"claims 2,147,483,647 rows, more than its"):
        list(saved_rows(tmp_path / "one"))
    os.truncate(tmp_path / "one/dataset_info.json", 2**40)
    with pytest.raises(UserError, match=r"1,099,511,627,776 bytes, more than"):
        list(saved_rows(tmp_path / "one"))


def test_no_file_or_address_that_a_row_names_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture can be a path or an address, which the library would open."""
    opened: list[Any] = []
    monkeypatch.setattr(datasets.features.image, "xopen", lambda *args, **_: opened.append(args))
    parts = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    features = datasets.Features({"text": datasets.Value("string"), "picture": parts})
    rows = [{"text": "a", "picture": {"path": path, "bytes": None}} for path in ("http://127.0.0.1:1/x", "/dev/zero")]
    datasets.Dataset.from_list(rows, features=features).save_to_disk(str(tmp_path / "one"))
    info = json.loads((tmp_path / "one/dataset_info.json").read_text())
    info["features"]["picture"] = {"_type": "Image"}
    (tmp_path / "one/dataset_info.json").write_text(json.dumps(info))
    assert [row for _, row in saved_rows(tmp_path / "one")] == [
        {"text": "a", "picture": {"bytes": None, "path": row["picture"]["path"]}} for row in rows
    ]
    assert opened == []
