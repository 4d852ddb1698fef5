"""What checkpoints cost: their share of the time of training at the usual frequency, and seconds to write a large one.

    python benchmarks/checkpoint_cost.py

First the quickstart's SFT, reward model and PPO on the tiny world, saved more often than usual so that there are enough
saves to time. The share is one save's median seconds over those of the steps from one save to the next, as many as
`save_every` has by default. Then, with tensors of an 8B model's shapes, what PPO saves of it: policy and value adapters
of rank 16 on every linear layer and their AdamW moments in 32 bits, written as in training. Every save is timed whole:
copy of the moments, files, fsync, hashes, removal of older ones.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from peft import LoraConfig
from provenance import provenance
from torch import Tensor

from lora_rlhf.cli.recipe_run import run_recipe
from lora_rlhf.configs.stages import PPOConfig, RewardConfig, SFTConfig
from lora_rlhf.configs.values import read_yaml
from lora_rlhf.model.adapters import write_adapter
from lora_rlhf.runs.folder import StageFolder
from lora_rlhf.stages.checkpoint import Checkpoints
from lora_rlhf.stages.trainer import Trainer
from lora_rlhf.system.disk import write_json

QUICKSTART = Path(__file__).parent.parent / "configs" / "quickstart.yaml"
TARGET = 0.03  # of the time of training, at most
MEASURED_EVERY = {"sft": 5, "reward": 5, "ppo": 2}  # steps between two saves here
ITERATIONS = 21
USUAL = {"sft": SFTConfig.save_every, "reward": RewardConfig.save_every, "ppo": PPOConfig.save_every}
RANK, LAYERS = 16, 32
# In and out of the linear layers of one block of an 8B model (Llama 3's shapes).
LINEAR = {
    **{"self_attn.q_proj": (4096, 4096), "self_attn.k_proj": (4096, 1024), "self_attn.v_proj": (4096, 1024)},
    **{"self_attn.o_proj": (4096, 4096), "mlp.gate_proj": (4096, 14336), "mlp.up_proj": (4096, 14336)},
    **{"mlp.down_proj": (14336, 4096)},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--saves", type=int, default=7, help="of the large checkpoint")
    parser.add_argument("--folder", type=Path, help="where to write; the disk there is what is measured")
    parser.add_argument("--to", type=Path, default=Path("benchmarks/results/checkpoint_cost.json"))
    args = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        large = save_large(Path(folder) / "large", args.saves)
        stages = train(Path(folder) / "run")
    result = {
        **provenance(f"python benchmarks/checkpoint_cost.py --saves {args.saves}"),
        "load_before": round(load, 2),
        "load_after": round(os.getloadavg()[0], 2),
        "torch_threads": torch.get_num_threads(),
        "target_share": TARGET,
        "all_below_target": all(stage["share"] < TARGET for stage in stages.values()),
        "quickstart": stages,
        "shapes_of_8b": large,
    }
    write_json(args.to, result)
    print(json.dumps(result, indent=2))


@dataclass
class Clock:
    """Seconds of a stage's saves, and of the steps between them without the saves."""

    saves: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    ended: float | None = None  # when the last boundary was passed


def train(run: Path) -> dict[str, Any]:
    """The quickstart up to PPO: of each stage the seconds of a save and of a step, and the share at the usual pace."""
    left_out = ("evaluate", "export")
    recipe = {key: value for key, value in read_yaml(QUICKSTART).items() if key not in left_out} | {"run": str(run)}
    for stage, every in MEASURED_EVERY.items():
        recipe[stage] = recipe[stage] | {"save_every": every}
    recipe["ppo"]["iterations"] = ITERATIONS
    clocks = {stage: Clock() for stage in MEASURED_EVERY}
    boundary = Trainer.save_or_stop

    def timed(self: Trainer, step: int, of: int, score: float | None = None) -> None:
        clock, begun = clocks[self._folder.stage], time.monotonic()
        if clock.ended is not None:
            clock.steps.append(begun - clock.ended)
        boundary(self, step, of, score)
        clock.ended = time.monotonic()
        if step % MEASURED_EVERY[self._folder.stage] == 0 and step < of:
            clock.saves.append(clock.ended - begun)

    with patch.object(Trainer, "save_or_stop", timed):
        run_recipe(recipe)
    return {stage: _figures(clock, USUAL[stage], size_of(run / stage)) for stage, clock in clocks.items()}


def _figures(clock: Clock, usual: int, size: int) -> dict[str, Any]:
    save, step = statistics.median(clock.saves), statistics.median(clock.steps)
    return {
        "megabytes": round(size / 1e6, 2),
        "saves": len(clock.saves),
        "seconds_per_save": round(save, 4),
        "longest_save": round(max(clock.saves), 4),
        "seconds_per_step": round(step, 3),
        "save_every": usual,
        "share": round(save / (usual * step), 5),
    }


def size_of(stage: Path) -> int:
    """Bytes of a stage's newest checkpoint."""
    newest = max((stage / "checkpoints").glob("step-*"))
    return sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())


def save_large(run: Path, saves: int) -> dict[str, Any]:
    """Seconds to save policy and value of an 8B model's shapes, and to write as many bytes as plainly as can be."""
    folder = StageFolder(PPOConfig(run=str(run), prompts="none"), "ppo")
    folder.path.mkdir(parents=True)
    adapters = {role: adapter() for role in ("policy", "value")}
    on_device = {
        f"{role}.{moment}.{name}": torch.randn_like(value)
        for role, state in adapters.items()
        for name, value in state.items()
        for moment in ("exp_avg", "exp_avg_sq")
    }
    settings = LoraConfig(r=RANK, target_modules=sorted(name.rpartition(".")[2] for name in LINEAR))

    def write_adapters(place: Path) -> None:
        for role, state in adapters.items():
            write_adapter(place / role, settings, state)

    checkpoints, seconds = Checkpoints(folder, keep=PPOConfig.keep_checkpoints), []
    for number in range(1, saves + 1):
        begun = time.monotonic()
        moments = {name: value.to("cpu", copy=True) for name, value in on_device.items()}
        checkpoints.save(number, {}, moments, write_adapters)
        seconds.append(time.monotonic() - begun)
    size, save = size_of(folder.path), statistics.median(seconds)
    return {
        "megabytes": round(size / 1e6),
        "seconds_per_save": round(save, 2),
        "all_seconds": [round(one, 2) for one in seconds],
        "megabytes_per_second": round(size / 1e6 / save),
        "plain_write_and_fsync_seconds": round(plain_write(run / "plain", size), 2),
        "save_every": USUAL["ppo"],
        "seconds_per_iteration_at_which_this_is_the_target_share": round(save / USUAL["ppo"] / TARGET, 1),
    }


def adapter() -> dict[str, Tensor]:
    """Random A and B of every linear layer, under PEFT's names."""
    parts = {
        f"base_model.model.model.layers.{layer}.{name}": sizes
        for layer in range(LAYERS)
        for name, sizes in LINEAR.items()
    }
    state = {f"{name}.lora_A.weight": torch.randn(RANK, sizes[0]) for name, sizes in parts.items()}
    return state | {f"{name}.lora_B.weight": torch.randn(sizes[1], RANK) for name, sizes in parts.items()}


def plain_write(path: Path, size: int) -> float:
    """Median seconds of writing one file of that size and waiting until it is on disk."""
    piece, seconds = os.urandom(2**24), []
    for _ in range(3):
        begun = time.monotonic()
        with open(path, "wb", buffering=0) as file:
            for left in range(size, 0, -len(piece)):
                file.write(piece[:left])
            os.fsync(file.fileno())
        seconds.append(time.monotonic() - begun)
        path.unlink()
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
