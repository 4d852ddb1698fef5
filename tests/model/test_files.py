"""A model is found, or not, within seconds: folder, hub and cache, with a network and without."""

import logging
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lora_rlhf.model import base, files
from lora_rlhf.model.files import find_files
from lora_rlhf.system.errors import UserError

pytestmark = pytest.mark.slow

Tiny = Callable[[str], Path]


@pytest.fixture
def unreachable() -> Iterator[str]:
    """The address of a hub at which nobody listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{unused.getsockname()[1]}"


@pytest.fixture
def hub_home(tiny_model: Tiny, tmp_path: Path) -> Path:
    """A home of the hub's library with owner/name in its cache, and owner/half without the weights."""
    for name in ("name", "half"):
        model = tmp_path / "hub" / f"models--owner--{name}"
        shutil.copytree(tiny_model("mistral"), model / "snapshots" / "0123abcd")
        (model / "refs").mkdir()
        (model / "refs" / "main").write_text("0123abcd")
    (tmp_path / "hub/models--owner--half/snapshots/0123abcd/model.safetensors").unlink()
    return tmp_path


CODE = (
    "import sys, time\n"
    "from lora_rlhf.model.base import BaseSpec, load_base\n"
    "from lora_rlhf.system.errors import UserError\n"
    "began = time.monotonic()\n"
    "try:\n"
    "    base = load_base(BaseSpec(sys.argv[1], 'none'), 'cpu')\n"
    "    print(base.model.name_or_path, len(base.source_hash), base.tokenizer.eos_token)\n"
    "except UserError as error:\n"
    "    print(error)\n"
    "assert time.monotonic() - began < 10, 'the library retried for half a minute'\n"
)


def load_alone(name: str, home: Path, **environment: str) -> tuple[str, str]:
    """Standard output and error of a process of its own that loads the model: settings are read on import."""
    kept = {
        key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy") and key != "HF_ENDPOINT"
    }
    command = [sys.executable, "-c", CODE, name]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
        env={**kept, "HF_HOME": str(home), **environment},
    )
    return done.stdout, done.stderr


def test_a_cached_model_loads_without_a_network_and_in_silence(hub_home: Path, unreachable: str) -> None:
    out, err = load_alone("owner/name", hub_home, HF_ENDPOINT=unreachable)
    assert out == "owner/name 64 <|end|>\n" and err == ""


def test_a_model_that_is_not_there_is_one_message(hub_home: Path, unreachable: str) -> None:
    out, err = load_alone("nosuchmodel", hub_home, HF_ENDPOINT=unreachable)
    assert err == ""
    assert out.startswith(
        "base model 'nosuchmodel': no such folder here, not in the cache of models, and the hub cannot"
    )
    assert f"({unreachable}: " in out and "hf download nosuchmodel --local-dir models/nosuchmodel" in out


@pytest.mark.parametrize("setting", ["HF_ENDPOINT", pytest.param("HF_HUB_OFFLINE", marks=pytest.mark.long)])
def test_a_cache_without_the_weights_says_so(hub_home: Path, unreachable: str, setting: str) -> None:
    out, err = load_alone("owner/half", hub_home, **{setting: unreachable if setting == "HF_ENDPOINT" else "1"})
    assert out == "base model 'owner/half': its weights are not in the cache, and the hub cannot be reached\n"
    assert err == ""


def test_it_takes_no_longer_than_the_probe(monkeypatch: pytest.MonkeyPatch, unreachable: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", unreachable)
    for word in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(word, raising=False)
        monkeypatch.delenv(word.upper(), raising=False)
    began = time.monotonic()
    with pytest.raises(UserError, match="cannot be reached"):
        find_files("owner/name-that-is-nowhere")
    assert time.monotonic() - began < 2


def test_with_a_network_the_library_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "hub_fault", lambda: None)
    monkeypatch.setattr(files, "is_offline_mode", lambda: False)
    assert find_files("owner/name") == ("owner/name", False)


def test_folders_and_names_of_no_hub_and_offline_need_no_probe(
    tiny_model: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "hub_fault", lambda: pytest.fail("the hub was probed"))
    folder = str(tiny_model("llama"))
    assert find_files(folder) == (folder, False)
    assert find_files("tinyworld").name.endswith("tinyworld/base")
    assert find_files("/no/such/folder/at/all") == ("/no/such/folder/at/all", False)
    monkeypatch.setattr(files, "is_offline_mode", lambda: True)
    assert find_files("owner/name") == ("owner/name", False)


def test_lines_of_retries_are_not_shown(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def failing(*_: object, **__: object) -> None:
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s [Retry 1/5].")
        raise OSError("gone")

    monkeypatch.setattr(files, "hub_fault", lambda: None)
    monkeypatch.setattr(files, "is_offline_mode", lambda: False)
    monkeypatch.setattr(files, "cached_file", failing)  # a real one tries again for half a minute
    for loader in (base.AutoTokenizer, base.AutoConfig):
        monkeypatch.setattr(loader, "from_pretrained", failing)
    level = logging.getLogger("huggingface_hub").level
    with pytest.raises(UserError, match="tokenizer does not load"):
        base.load_tokenizer("owner/name")
    with pytest.raises(UserError, match="neither an existing folder"):
        base.load_base(base.BaseSpec("owner/name"), "cpu")
    assert caplog.text == ""
    assert logging.getLogger("huggingface_hub").level == level
