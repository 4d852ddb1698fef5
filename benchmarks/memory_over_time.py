"""Memory of a process over 200 iterations of PPO: resident, and on a GPU allocated and reserved.

    python benchmarks/memory_over_time.py

SFT, reward model and PPO run in this process on a tiny random model, PPO with everything that holds state: the adaptive
KL coefficient, the pretraining text, checkpoints. After each iteration its memory is read: the resident size of this
moment, not the peak. The slope is a least-squares line's after the first 50 iterations; its interval is a bootstrap of
blocks of iterations, since neighbours are alike. Flat is: the upper end of the 95 % interval is below 1 MiB per 100
iterations, the most that a run of 10 000 iterations would then gain being 100 MiB.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from matplotlib.figure import Figure
from provenance import provenance
from tiny import DATA, make_data, make_model

from lora_rlhf.configs.stages import PPOConfig, RewardConfig, SFTConfig
from lora_rlhf.stages import ppo, reward, sft
from lora_rlhf.stages.trainer import Trainer
from lora_rlhf.system.disk import write_json

MIB = 2**20
SETTLED = 50  # iterations before this one load libraries and fill caches
BLOCK, RESAMPLES = 15, 4000  # of the bootstrap
FLAT = 1.0  # MiB per 100 iterations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--to", type=Path, default=Path("benchmarks/results/memory_over_time.json"))
    args = parser.parse_args()
    load, started = os.getloadavg()[0], time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(Path(folder), args.iterations)
    lines = {name: line(values) for name, values in measured.items()}
    result = {
        **provenance(f"python benchmarks/memory_over_time.py --iterations {args.iterations}"),
        **({"hardware": torch.cuda.get_device_name(0)} if torch.cuda.is_available() else {}),
        "load_before": round(load, 2),
        "seconds": round(time.monotonic() - started),
        "iterations": args.iterations,
        "settled_after": SETTLED,
        "flat_below_mib_per_100": FLAT,
        "flat": all(one["high"] < FLAT for one in lines.values()),
        "slope_mib_per_100": lines,
        "mib": {name: [round(value, 2) for value in values] for name, values in measured.items()},
    }
    write_json(args.to, result)
    plot(measured, lines, args.to.with_suffix(".png"))
    print(json.dumps({key: value for key, value in result.items() if key != "mib"}, indent=2))


def measure(folder: Path, iterations: int) -> dict[str, list[float]]:
    """MiB after each iteration, of each kind of memory that this machine has."""
    make_model(folder / "model")
    make_data(folder / DATA)
    common: dict[str, Any] = {"run": str(folder / "run"), "max_prompt_tokens": 48, "max_response_tokens": 24}
    data = folder / DATA
    model = sft.train(
        SFTConfig(model=str(folder / "model"), demonstrations=str(data / "demonstrations.jsonl"), **common)
    )
    model = reward.train(RewardConfig(rankings=str(data / "rankings.jsonl"), **common), model)
    config = PPOConfig(
        prompts=str(data / "prompts.jsonl"),
        pretraining_text=str(data / "text.jsonl"),
        ptx_block_tokens=32,
        iterations=iterations,
        batch_size=16,
        minibatch_size=8,
        kl_target=1.0,
        kl_horizon=200.0,
        **common,
    )
    measured: dict[str, list[float]] = {}
    log = Trainer.log

    def observed(self: Trainer, step: int, metrics: Any, *details: Any) -> None:
        log(self, step, metrics, *details)
        for name, value in memory().items():
            measured.setdefault(name, []).append(value / MIB)

    with patch.object(Trainer, "log", observed):
        ppo.train(config, model)
    return measured


def memory() -> dict[str, int]:
    """Bytes that this process holds now."""
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    if not torch.cuda.is_available():
        return {"resident": resident}
    allocated, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    return {
        "resident": resident,
        "gpu_allocated": allocated,
        "gpu_reserved": reserved,
        "gpu_gaps": reserved - allocated,
    }


def line(values: list[float]) -> dict[str, float]:
    """Slope in MiB per 100 iterations after the first ones with its 95 % interval, and first, last and most MiB."""
    settled = np.array(values[SETTLED:])
    x = np.arange(len(settled))
    slope, start = np.polyfit(x, settled, 1)
    residuals = settled - (start + slope * x)
    rng = np.random.default_rng(0)
    starts = rng.integers(0, len(x) - BLOCK + 1, (RESAMPLES, -(-len(x) // BLOCK)))
    drawn = residuals[(starts[:, :, None] + np.arange(BLOCK)).reshape(RESAMPLES, -1)[:, : len(x)]]
    slopes = slope + drawn @ (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    low, high = np.percentile(slopes, (2.5, 97.5))
    figures = {"slope": 100 * slope, "low": 100 * low, "high": 100 * high}
    levels = {"first": values[0], "settled": values[SETTLED], "last": values[-1], "most": max(values)}
    return {name: round(float(value), 3) for name, value in {**figures, **levels}.items()}


def plot(measured: dict[str, list[float]], lines: dict[str, dict[str, float]], path: Path) -> None:
    """One panel for each kind of memory."""
    figure = Figure(figsize=(7, 2.6 * len(measured)), layout="constrained")
    for axes, (name, values) in zip(np.atleast_1d(figure.subplots(len(measured), 1)), measured.items(), strict=True):
        axes.plot(range(1, len(values) + 1), values, linewidth=1)
        axes.axvline(SETTLED, color="grey", linewidth=0.8, linestyle=":")
        one = lines[name]
        interval = f"[{one['low']:+.2f}, {one['high']:+.2f}]"
        said = f"{one['slope']:+.2f} MiB per 100 iterations {interval} after the first {SETTLED}"
        axes.set_title(f"{name.replace('_', ' ')}: {said}", fontsize=9, loc="left")
        axes.set_xlabel("iteration")
        axes.set_ylabel("MiB")
    figure.savefig(path, dpi=140)


if __name__ == "__main__":
    main()
