"""Export of a model in the shape of Llama-3.1-8B: peak memory and time, beside a plain copy of its bytes and PEFT.

    python benchmarks/export.py                                      # all 32 layers: 16 GB, twice that of disk
    python benchmarks/export.py --layers 1 --peer_layers 1           # 2.5 GB

Disk and memory are looked at first. Everything that is written goes into a temporary folder, which is removed at the
end, also after Ctrl-C, SIGTERM and a merge that takes longer than --limit_minutes.

Random weights in bfloat16 are written shard by shard, tensor by tensor, and a rank 16 adapter on every linear layer.
Each way to merge runs in a process of its own, of which the largest resident size is noted. A copy reads and writes the
same files and waits for the disk, as the export does. PEFT's way is what its documentation says: the 16-bit base in
memory, `merge_and_unload`, `save_pretrained`; it merges into the original weights. Where it would not fit into memory
it runs on fewer layers (`--peer_layers`), which the result says; its memory grows with the model.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from copy import deepcopy as copy_of
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ppo_against_trl import HERE
from provenance import provenance
from shapes import SHAPES, TINYWORLD
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lora_rlhf.exporting.shards import write_shards
from lora_rlhf.model.adapters import LoraSettings, write_adapter
from lora_rlhf.model.dense import free_bytes
from lora_rlhf.model.files import find_config_file, find_files, find_weight_files, hash_files
from lora_rlhf.model.merging import PIECE_NUMBERS, PlannedTensor
from lora_rlhf.model.rounding import rows_per_piece
from lora_rlhf.model.targets import find_targets
from lora_rlhf.model.tensor_files import Entry
from lora_rlhf.system.disk import write_json

GB = 1e9
SHARD = 5 * 10**9
SPARE = 10**9
PEER_MEMORY = 1.5  # times the weights, which it holds and copies a layer of
SCALE = 0.02
OURS = """
import sys, time, json, logging
started = time.monotonic()
from lora_rlhf.exporting.config import ExportConfig
from lora_rlhf.exporting.export import export
from lora_rlhf.model.memory import peak_rss_gib
begun = time.monotonic()
export(ExportConfig(folder=sys.argv[1], role="sft", to=sys.argv[2], parity="none", device="cpu"))
ended = time.monotonic()
print(json.dumps({"seconds": ended - begun, "import_seconds": begun - started, "peak_rss_gib": peak_rss_gib()}))
"""
PEER = """
import sys, time, json
started = time.monotonic()
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from lora_rlhf.model.memory import peak_rss_gib
begun = time.monotonic()
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
model = PeftModel.from_pretrained(model, sys.argv[3]).merge_and_unload()
model.save_pretrained(sys.argv[2])
ended = time.monotonic()
print(json.dumps({"seconds": ended - begun, "import_seconds": begun - started, "peak_rss_gib": peak_rss_gib()}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--peer_layers", type=int, default=16)
    parser.add_argument("--folder", type=Path, help="where there is room; a temporary folder unless given")
    parser.add_argument("--to", type=Path, default=HERE / "results" / "export.json")
    parser.add_argument("--limit_minutes", type=float, default=90, help="the most that one merge may take")
    args = parser.parse_args()
    require_room(args.folder or Path(tempfile.gettempdir()), args.layers, args.peer_layers)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the folder is removed
    result: dict[str, Any] = {
        **provenance(" ".join(["python", "benchmarks/export.py", *sys.argv[1:]])),
        "threads": torch.get_num_threads(),
        "shape": "llama-3-8b",
    }
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        result["export"] = measure(Path(folder), args.layers, "export", OURS, args.limit_minutes)
        result["peft"] = measure(Path(folder), args.peer_layers, "peft", PEER, args.limit_minutes)
    write_json(args.to, result)
    print(json.dumps(result, indent=2))


def require_room(folder: Path, layers: int, peer_layers: int) -> None:
    """Ends the program where the disk cannot take the base twice, or memory the peer's model."""
    wanted = int(2 * num_bytes(meta_state(max(layers, peer_layers))) + SPARE)
    free = shutil.disk_usage(folder).free
    if wanted > free:
        sys.exit(
            f"{folder}: takes {wanted / GB:.0f} GB, and {free / GB:.0f} GB are free; give --folder, or fewer --layers"
        )
    wanted, free = int(PEER_MEMORY * num_bytes(meta_state(peer_layers)) + SPARE), free_bytes(torch.device("cpu"))
    if wanted > free:
        sys.exit(
            f"PEFT's way takes about {wanted / GB:.0f} GB of memory, {free / GB:.0f} GB are free; fewer --peer_layers"
        )


def measure(root: Path, layers: int, name: str, script: str, limit_minutes: float) -> dict[str, Any]:
    """One way to merge a base of so many layers, and a plain copy of it just before."""
    base, run, out = root / "base", root / "run", root / "out"
    size = make_base(base, layers)
    make_run(run, base)
    say(f"{name}: a plain copy of {size / GB:.1f} GB")
    copied = copy(base, root / "copy")
    load = os.getloadavg()[0]
    say(f"{name}: merging {layers} layers")
    done = subprocess.run(
        [sys.executable, "-c", script, str(run if name == "export" else base), str(out), str(run / "sft" / "adapter")],
        stdout=subprocess.PIPE, text=True, check=True, timeout=60 * limit_minutes,
    )  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    for folder in (base, run, out):
        shutil.rmtree(folder)
    return {
        "layers": layers,
        "gb": round(size / GB, 3),
        "peak_rss_gib": round(found["peak_rss_gib"], 3),
        "seconds": round(found["seconds"], 1),
        "seconds_per_gb": round(found["seconds"] / (size / GB), 2),
        "import_seconds": round(found["import_seconds"], 1),
        "copy_seconds": round(copied, 1),
        "copy_seconds_per_gb": round(copied / (size / GB), 2),
        "times_a_copy": round(found["seconds"] / copied, 1),
        "load_before": round(load, 2),
    }


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def shape_of(layers: int) -> Any:
    """The config of an 8B model with that many layers."""
    config = copy_of(SHAPES["llama-3-8b"])
    config.num_hidden_layers = layers
    config.architectures = ["LlamaForCausalLM"]
    return config


def meta_state(layers: int) -> dict[str, Tensor]:
    """Names and shapes of its tensors, in bfloat16."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(shape_of(layers), dtype=torch.bfloat16).state_dict()


def num_bytes(state: dict[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in state.values())


def make_base(folder: Path, layers: int) -> int:
    """A base of that many layers, never in memory as a whole; returns its bytes."""
    folder.mkdir()
    config, state = shape_of(layers), meta_state(layers)
    tokenizer = AutoTokenizer.from_pretrained(TINYWORLD)
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    planned = [
        PlannedTensor(Entry(name, tensor.dtype, tuple(tensor.shape)), partial(drawn, tensor, generator))
        for name, tensor in state.items()
    ]
    write_shards(folder, planned, SHARD)
    return num_bytes(state)


def drawn(tensor: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    """Random values for a tensor, a few rows at a time."""
    rows = rows_per_piece(tensor.shape[1], PIECE_NUMBERS) if tensor.dim() == 2 else tensor.shape[0]
    for first in range(0, tensor.shape[0], rows):
        size = (min(rows, tensor.shape[0] - first), *tensor.shape[1:])
        values = torch.randn(size, generator=generator) * SCALE if tensor.dim() == 2 else torch.ones(size)
        yield values.to(tensor.dtype)


def make_run(folder: Path, base: Path) -> None:
    """A run with an SFT stage on that base, its adapter random."""
    config = AutoConfig.from_pretrained(base)
    with torch.device("meta"):
        causal = AutoModelForCausalLM.from_config(config)
    targets = find_targets(causal)
    generator, state = torch.Generator().manual_seed(1), {}
    for path, module in causal.named_modules():
        if path in targets.layers:
            for part, size in (("A", (16, module.in_features)), ("B", (module.out_features, 16))):
                state[f"base_model.model.{path}.lora_{part}.weight"] = torch.randn(size, generator=generator) * 0.01
    (folder / "sft").mkdir(parents=True)
    write_adapter(folder / "sft" / "adapter", LoraSettings().to_peft(targets), state)
    files = find_files(str(base))
    tokenizer = AutoTokenizer.from_pretrained(TINYWORLD)
    write_json(
        folder / "sft" / "manifest.json",
        {
            **{"format": 1, "stage": "sft", "status": "finished", "id": "benchmark", "parents": {}, "data": {}},
            **{"seconds": 0.0, "results": {}},
            "base": {
                **{"name": str(base), "quantization": "nf4", "compute_dtype": "float32", "trust_remote_code": False},
                "source_hash": hash_files([find_config_file(files), *find_weight_files(files, str(base))]),
                "chat_template": tokenizer.chat_template,
            },
        },
    )


def copy(source: Path, to: Path) -> float:
    """Seconds that a plain copy of the weights takes until it is on disk."""
    started = time.monotonic()
    to.mkdir()
    for path in sorted(source.glob("*.safetensors")):
        with path.open("rb") as read, (to / path.name).open("wb") as written:
            shutil.copyfileobj(read, written, 2**24)
            written.flush()
            os.fsync(written.fileno())
    seconds = time.monotonic() - started
    shutil.rmtree(to)
    return seconds


if __name__ == "__main__":
    main()
