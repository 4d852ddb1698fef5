"""Memory against the number of roles: the 4-bit base alone, then with SFT, reward, policy and value on it.

    python benchmarks/role_memory.py                                 # the small Llama and a 1.5B shape
    python benchmarks/role_memory.py --shapes llama-3-8b             # some 20 GB of memory and disk

Bytes of live tensors: those of the loaded base with its quantization states, then what each role's adapter and head
add, as its manifest reports them too; and of a role that is trained, AdamW's moments. Random weights; rank 16 on every
linear layer.
"""

import argparse
import gc
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from half import GPU
from matplotlib.figure import Figure
from ppo_against_trl import HERE
from provenance import provenance
from shapes import SHAPES, make_model

from lora_rlhf.model.adapters import LoraSettings
from lora_rlhf.model.base import BaseSpec, load_base
from lora_rlhf.model.memory import adapter_bytes, count_quantized_storages
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.system.disk import write_json

MIB = 2**20
TRAINED = {"policy", "value"}  # during PPO
COLORS = ("#c9c9c9", "#1f6f8b", "#8fb8c6", "#d1703c", "#e9b08f", "#8a8a8a")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["llama-4x256", "qwen2.5-1.5b"])
    parser.add_argument("--to", type=Path, default=HERE / "results" / "role_memory.json")
    args = parser.parse_args()
    shapes = {}
    for shape in args.shapes:
        with tempfile.TemporaryDirectory() as folder:
            shapes[shape] = measure(shape, Path(folder))
    result = {
        **provenance(" ".join(["python", "benchmarks/role_memory.py", *sys.argv[1:]])),
        **({"hardware": torch.cuda.get_device_name(0)} if GPU else {}),
        "shapes": shapes,
    }
    write_json(args.to, result)
    plot(shapes, args.to.with_suffix(".png"))
    print(json.dumps(result, indent=2))


def measure(shape: str, folder: Path) -> dict[str, Any]:
    """MiB of the base and of each role, and each role's share of the base."""
    make_model(SHAPES[shape], folder)
    model = SharedModel(load_base(BaseSpec(str(folder))))
    base, bases = live_bytes(model), count_quantized_storages()
    settings = LoraSettings()
    roles: dict[str, Any] = {}
    for role in ("sft", "reward", "policy", "value"):
        before = live_bytes(model)
        if role in ("sft", "reward"):
            model.add_role(role, settings, head=role == "reward")
        else:
            source = {"policy": "sft", "value": "reward"}[role]
            model.copy_role(source, role, head="copy" if role == "value" else None)
        added, own = live_bytes(model) - before, adapter_bytes(model, role)
        roles[role] = {
            "mib": round(added / MIB, 3),
            "adapter_mib": round(own / MIB, 3),
            "share_of_base": round(added / base, 5),
            "optimizer_mib": round(2 * own / MIB, 3) if role in TRAINED else 0.0,
        }
    return {
        "base_mib": round(base / MIB, 2),
        "base_in_16_bits_mib": round(sum(path.stat().st_size for path in folder.glob("*.safetensors")) / MIB, 2),
        "quantized_storages": {"base": bases, "with_all_roles": count_quantized_storages()},
        "roles": roles,
    }


def live_bytes(model: SharedModel) -> int:
    """Bytes of all distinct tensors that the model holds, quantization states included."""
    gc.collect()
    held = {}
    for value in model.causal.state_dict(keep_vars=True).values():
        if isinstance(value, torch.Tensor):
            held[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
    return sum(held.values())


def plot(shapes: dict[str, Any], path: Path) -> None:
    """A bar a shape: the base, each role on it, and the optimizers of the two that are trained."""
    figure = Figure(figsize=(8, 0.9 + 0.8 * len(shapes)), layout="constrained")
    for axes, (shape, found) in zip(figure.subplots(len(shapes), 1, squeeze=False)[:, 0], shapes.items(), strict=True):
        pieces = {"base": found["base_mib"]} | {role: one["mib"] for role, one in found["roles"].items()}
        pieces["optimizers"] = sum(one["optimizer_mib"] for one in found["roles"].values())
        start = 0.0
        for (name, value), color in zip(pieces.items(), COLORS, strict=True):
            axes.barh(0, value, left=start, color=color, label=f"{name} {value:.1f}")
            start += value
        axes.set_title(f"{shape}, MiB", fontsize=9, loc="left")
        axes.set_yticks([])
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(labelsize=8)
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=140)


if __name__ == "__main__":
    main()
