"""A stranger's config.json: what would fetch code, and what claims more than the weights hold, is refused at once."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora_rlhf.model.base import BaseSpec, load_base, load_config
from lora_rlhf.system.errors import UserError


@pytest.fixture
def write(tiny_model: Callable[[str], Path], tmp_path: Path) -> Callable[..., str]:
    """Writes a copy of a tiny model whose config has these changes; returns its folder."""

    def write_copy(**changes: Any) -> str:
        folder = shutil.copytree(tiny_model("llama"), tmp_path / "model", symlinks=False)
        settings = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(settings | changes))
        return str(folder)

    return write_copy


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_attn_implementation": "someone/kernel"}, "would run code"),
        ({"attn_implementation": "someone/kernel:function"}, "would run code"),
        ({"text_config": {"_experts_implementation": "a/b"}}, "would run code"),
        ({"num_hidden_layers": 1_000_000}, "num_hidden_layers is 1,000,000"),
        ({"hidden_size": 10**12}, "hidden_size is"),
        ({"vocab_size": 10**12}, "vocab_size is"),
    ],
)
def test_a_config_that_means_harm_is_refused(write: Callable[..., str], changes: dict[str, Any], message: str) -> None:
    folder = write(**changes)
    for load in (load_config, lambda name: load_base(BaseSpec(name, "none"), "cpu")):
        with pytest.raises(UserError, match=message):
            load(folder)


def test_a_usual_config_is_read(write: Callable[..., str]) -> None:
    assert load_config(write(_attn_implementation="sdpa")).num_hidden_layers > 0


@pytest.mark.slow
@pytest.mark.parametrize(("asked", "is_off"), [(None, True), ("YES", False)])
def test_kernels_are_fetched_only_where_they_are_asked_for(asked: str | None, is_off: bool) -> None:
    code = "import sys, lora_rlhf.model; print('kernels' in sys.modules and sys.modules['kernels'] is None)"
    environment = {name: value for name, value in os.environ.items() if name != "USE_HUB_KERNELS"}
    environment |= {} if asked is None else {"USE_HUB_KERNELS": asked}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == str(is_off)
