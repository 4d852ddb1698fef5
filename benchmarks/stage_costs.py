"""How PPO's seconds and peak memory grow with the batch, the length of responses, and the model.

    python benchmarks/stage_costs.py

A small Llama on whatever is there, one thing varied at a time, each point in processes of its own, the points in turn.
Of each process the first iteration and the last are left out; of the others the least counts, since what else runs on
the machine only adds. The plot is of CPU seconds where there is no GPU. The rest is set up as in ppo_against_trl.py,
whose half for this project is what runs.
"""

import argparse
import dataclasses
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from half import GPU
from matplotlib.figure import Figure
from ppo_against_trl import COLORS, HERE, PARTS, WORKLOADS, Workload, counted, prepare_apart, run_half
from provenance import provenance
from tqdm import tqdm
from transformers import LlamaConfig

from lora_rlhf.system.disk import write_json
from lora_rlhf.system.errors import UserError

USUAL = WORKLOADS["llama-4x256"]
WIDTH, LAYERS = 256, 4
CLOCK = "" if GPU else "processor_"  # what else runs on the machine moves CPU seconds less
MEMORY = "peak_gpu_allocated_mib" if GPU else "peak_resident_mib"


@dataclasses.dataclass(frozen=True)
class Point:
    """One thing varied: which, its value, and the workload and shape that follow."""

    varied: str
    value: int
    workload: Workload = USUAL
    width: int = WIDTH
    layers: int = LAYERS

    @property
    def shape(self) -> LlamaConfig:
        return LlamaConfig(
            hidden_size=self.width,
            intermediate_size=self.width * 11 // 4,
            num_hidden_layers=self.layers,
            num_attention_heads=self.width // 64,
            num_key_value_heads=self.width // 64,
            vocab_size=2048,
            tie_word_embeddings=False,
            max_position_embeddings=4096,
        )


def points() -> list[Point]:
    """All of them; the usual workload stands in every series."""
    batch = [Point("responses", n, dataclasses.replace(USUAL, batch_size=n)) for n in (8, 16, 32, 64)]
    length = [Point("response tokens", n, dataclasses.replace(USUAL, response_tokens=n)) for n in (24, 48, 96, 192)]
    width = [Point("width of the model", n, width=n) for n in (128, 256, 512, 768)]
    return [*batch, *length, *width, *(Point("layers of the model", n, layers=n) for n in (2, 4, 8, 16))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=5, help="of each process, at least 3; first and last warm up")
    parser.add_argument("--repeats", type=int, default=2, help="processes of each point")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each process")
    parser.add_argument("--to", type=Path, default=HERE / "results" / "stage_costs.json")
    args = parser.parse_args()
    load, todo = os.getloadavg()[0], points()
    measured: list[list[dict[str, Any]]] = [[] for _ in todo]
    largest = dataclasses.replace(USUAL, batch_size=max(point.workload.batch_size for point in todo))
    with tempfile.TemporaryDirectory() as scratch, tqdm(total=args.repeats * len(todo), desc="processes") as bar:
        for _ in range(args.repeats):
            for point, runs in zip(todo, measured, strict=True):
                folder = Path(scratch) / f"{point.layers}x{point.width}"
                if not folder.exists():
                    prepare_apart(folder, point.shape, largest)  # with prompts enough for all
                size = point.workload.batch_size
                runs.append(run_half("ours", folder, point.workload, args.iterations, args.threads, size))
                if "seconds" not in runs[-1]:
                    raise UserError(f"{point}: {runs[-1]}")
                bar.update()
    result = {
        **provenance(" ".join(["python", "benchmarks/stage_costs.py", *sys.argv[1:]])),
        **({"hardware": torch.cuda.get_device_name(0)} if GPU else {}),
        "threads": args.threads,
        "load_before": round(load, 2),
        "load_after": round(os.getloadavg()[0], 2),
        "usual": {**dataclasses.asdict(USUAL), "width": WIDTH, "layers": LAYERS},
        "points": [figures(point, runs) for point, runs in zip(todo, measured, strict=True)],
    }
    write_json(args.to, result)
    plot(result["points"], args.to.with_suffix(".png"))
    print(json.dumps(result, indent=2))


def figures(point: Point, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The least of a point's iterations, part by part; the largest peak of its processes."""
    parts = [part for run in runs for part in counted(run["parts"])]
    processor = [value for run in runs for value in counted(run["processor_seconds"])]
    return {
        "varied": point.varied,
        "value": point.value,
        **{name: round(min(part[name] for part in parts), 3) for name in parts[0]},
        "processor_seconds": round(min(processor), 3),
        MEMORY: round(max(run[MEMORY] for run in runs), 1),
        "before_the_model_mib": round(max(run["resident_before_mib"] for run in runs), 1),
    }


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Above the seconds of each part, below the peak memory, over each thing that was varied."""
    names = list(dict.fromkeys(row["varied"] for row in rows))
    figure = Figure(figsize=(3.1 * len(names), 5.2), layout="constrained")
    panels = figure.subplots(2, len(names), sharey="row")
    for (upper, lower), name in zip(panels.T, names, strict=True):
        shown = [row for row in rows if row["varied"] == name]
        values = [row["value"] for row in shown]
        for (part, said), color in zip(PARTS.items(), COLORS, strict=True):
            upper.plot(values, [row[CLOCK + part] for row in shown], marker="o", markersize=3, color=color, label=said)
        lower.plot(values, [row[MEMORY] for row in shown], marker="o", markersize=3, color="#222222")
        lower.plot(values, [row["before_the_model_mib"] for row in shown], color="#8a8a8a", linestyle=":")
        lower.set_xlabel(name, fontsize=9)
        for axes in (upper, lower):
            axes.set_xticks(values)
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelsize=8)
    for row in panels:
        row[0].set_ylim(bottom=0)  # of all, which share it
    panels[0, 0].set_ylabel("seconds" if GPU else "CPU seconds", fontsize=9)
    panels[0, 0].legend(frameon=False, fontsize=8)
    panels[1, 0].set_ylabel("peak memory, MiB\n(dotted: before the model)", fontsize=9)
    figure.savefig(path, dpi=140)


if __name__ == "__main__":
    main()
