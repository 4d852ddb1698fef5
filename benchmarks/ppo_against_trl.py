"""PPO end to end against TRL 1.12, the last release of TRL with PPO: seconds per iteration, peak memory, in one run.

    python benchmarks/ppo_against_trl.py                            # a CPU, a small Llama
    python benchmarks/ppo_against_trl.py --shape qwen2.5-1.5b       # a GPU, 64 prompts, 256 + 256 tokens
    python benchmarks/ppo_against_trl.py --shape llama-3-8b

TRL 1.12 is put into a folder of its own by pip (`pip install --no-deps --target FOLDER trl==1.12.0`), which needs a
network once; `--trl-folder` keeps it. It is read before this environment's own packages, so that torch, transformers,
PEFT and bitsandbytes are the same on both sides.

The same on both sides: a random model of the shape (benchmarks/shapes.py), NF4 with double quantization, the dtype of
computation (float32 on a CPU, bfloat16 on a GPU), LoRA of rank 16 on every linear layer of policy and value, prompts
of exactly the given length, temperature 1, one epoch with one optimizer step on the whole batch, the size of the
micro-batches, gradient checkpointing (off on the CPU, on on the GPU), threads. The models cannot end a response, so
that both generate the same number of tokens, which is checked in each iteration. Generation takes the whole batch at
a time; a side that runs out of memory with it takes half of it, until it fits, and the result says so. What fits
nowhere, or fails, is a result too: the file is written after each process. Figures are logged as by default;
checkpoints and records of samples are off.

TRL as somebody who knows it would set it up (`trl.experimental.ppo`; its documentation and examples/scripts/ppo): the
policy takes a PEFT config, and the reference is then the policy's base without the adapter (ref_model None), which is
cheaper than a reference with an adapter, as ours has. Value and reward are two further models, each a whole backbone,
as its API demands; both are quantized here too. TRL trains whatever of the value model can be trained: that is given
LoRA layers, since in 4 bits it would otherwise learn little but its head. The reward model has none: an adapter of it
would have been merged. `gradient_checkpointing` is switched on at the models, as its PPO does not read it; its `bf16`
is off, since it casts norms to float32 without autocast, which fails behind models in bfloat16. num_mini_batches 1,
num_ppo_epochs 1, gradient accumulation over the micro-batches. Its scores and its reference pass take the whole batch
at a time (as its default of 64 would); ours go in micro-batches, like the update.

Ours: the PPO stage (`lora-rlhf ppo`) on SFT and reward stages that were trained for one step, GAE with a value role.

Each side runs in a process of its own, one after the other, A B A B ..., so that a disturbance of the machine hits
both alike. Of each process the first iteration (it warms up) and the last are left out. Peak memory is the
process's largest resident size, everything that it imports included; on a GPU also what PyTorch had allocated and
reserved at most.

miniVERL 0.16 has no row: see docs/speed.md.
"""

import argparse
import importlib.metadata
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from half import GPU
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from ppo_ours import make_data, make_parents
from provenance import provenance
from shapes import SHAPES, make_model
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedConfig

from lora_rlhf.system.disk import write_json
from lora_rlhf.system.errors import UserError

HERE = Path(__file__).parent
TRL = "1.12.0"
LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes")
PARTS = {"rollout_s": "sampling", "score_s": "scoring", "update_s": "update"}
NAMES = {"ours": "lora-rlhf", "trl": f"TRL {TRL}"}
COLORS = ["#1f6f8b", "#8fb8c6", "#d1703c"]


@dataclass(frozen=True)
class Workload:
    """One iteration: responses, tokens of each prompt and of each response, responses per training pass."""

    batch_size: int
    prompt_tokens: int
    response_tokens: int
    micro_batch_size: int
    gradient_checkpointing: bool
    target_times_as_fast: float  # as TRL, at least
    target_memory: float  # of TRL's peak, at most


WORKLOADS = {
    "llama-4x256": Workload(32, 32, 48, 8, False, 1.2, 1.0),
    # times as fast: by the roofline 1.2 to 1.6, more where launches weigh more
    "qwen2.5-1.5b": Workload(64, 256, 256, 8, True, 1.2, 0.4),
    "llama-3-8b": Workload(64, 256, 256, 8, True, 1.2, 0.4),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=WORKLOADS, default="llama-4x256")
    parser.add_argument("--iterations", type=int, default=5, help="of each process, at least 3; first and last warm up")
    parser.add_argument("--repeats", type=int, default=5, help="processes of each side")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each process")
    parser.add_argument("--micro-batch-size", type=int, help="another one than the shape's, on both sides")
    parser.add_argument("--trl-folder", type=Path, help=f"where TRL {TRL} is, or is to be put; else a temporary one")
    parser.add_argument("--to", type=Path, help="benchmarks/results/ppo_against_trl_SHAPE.json unless given")
    args = parser.parse_args()
    if args.iterations < 3:
        parser.error("--iterations must be at least 3: the first and the last are left out")
    workload = WORKLOADS[args.shape]
    if args.micro_batch_size:
        workload = Workload(**{**asdict(workload), "micro_batch_size": args.micro_batch_size})
    to = args.to or HERE / "results" / f"ppo_against_trl_{args.shape}.json"
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        site = install_trl(args.trl_folder or folder / "site")
        prepare_apart(folder, SHAPES[args.shape], workload)
        runs: dict[str, list[dict[str, Any]]] = {"trl": [], "ours": []}
        sizes = dict.fromkeys(runs, workload.batch_size)
        with tqdm(total=2 * args.repeats, desc="processes") as bar:
            for _ in range(args.repeats):
                for side in runs:
                    measured = run_half(side, folder, workload, args.iterations, args.threads, sizes[side], site)
                    while "does_not_fit" in measured and sizes[side] > 1:
                        sizes[side] //= 2
                        measured = run_half(side, folder, workload, args.iterations, args.threads, sizes[side], site)
                    runs[side].append(measured)
                    write_json(to, describe(args, workload, runs, load))
                    bar.update()
    result = describe(args, workload, runs, load)
    if "share_of_peak_memory" in result:
        plot(result, to.with_suffix(".png"))
    print(json.dumps({key: value for key, value in result.items() if key != "runs"}, indent=2))


def describe(
    args: argparse.Namespace, workload: Workload, runs: dict[str, list[dict[str, Any]]], load: float
) -> dict[str, Any]:
    """The result so far: where it comes from, the settings, the comparison if both sides have run, and all runs."""
    return {
        **provenance(" ".join(["python", "benchmarks/ppo_against_trl.py", *sys.argv[1:]])),
        **({"hardware": torch.cuda.get_device_name(0)} if GPU else {}),
        "versions": {
            name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft", "bitsandbytes")
        },
        "shape": args.shape,
        **asdict(workload),
        "iterations": args.iterations,
        "repeats": args.repeats,
        "threads": args.threads,
        "load_before": round(load, 2),
        "load_after": round(os.getloadavg()[0], 2),
        **compare(runs, workload),
        "runs": runs,
    }


def install_trl(folder: Path) -> Path:
    """A folder in which that release lies alone, put there by pip if it is not. UserError where pip fails."""
    if not (folder / f"trl-{TRL}.dist-info").is_dir():
        command = ["pip", "install", "--quiet", "--no-deps", "--target", str(folder), f"trl=={TRL}"]
        if subprocess.run([sys.executable, "-m", *command]).returncode:
            raise UserError(f"TRL {TRL} could not be installed; put it into a folder yourself and give --trl-folder")
    return folder


def prepare(folder: Path, shape: PreTrainedConfig, workload: Workload) -> None:
    """The model, the prompts, and the stages that ours begins from."""
    make_model(shape, folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    make_data(folder, tokenizer, workload.prompt_tokens, 4 * workload.batch_size)
    make_parents(folder, workload.prompt_tokens)


def prepare_apart(folder: Path, shape: PreTrainedConfig, workload: Workload) -> None:
    """`prepare` in a process that ends, so that it holds nothing on a GPU. UserError if it failed."""
    process = multiprocessing.get_context("spawn").Process(target=prepare, args=(folder, shape, workload))
    process.start()
    process.join()
    if process.exitcode:
        raise UserError("model, data and parent stages could not be made; see above")


def run_half(
    side: str,
    folder: Path,
    workload: Workload,
    iterations: int,
    threads: int,
    rollout_batch_size: int,
    site: Path | None = None,
) -> dict[str, Any]:
    """One process of that side: what it measured, that it does not fit, or the last lines of what failed."""
    flags = {"folder": folder, "iterations": iterations, "threads": threads, "rollout_batch_size": rollout_batch_size}
    for name in ("batch_size", "micro_batch_size", "prompt_tokens", "response_tokens"):
        flags[name] = getattr(workload, name)
    given = [part for name, value in flags.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    given += ["--gradient-checkpointing"] if workload.gradient_checkpointing else []
    paths = [str(site)] if side == "trl" else []
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*paths, str(HERE.parent), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    }
    command = [sys.executable, str(HERE / f"ppo_{side}.py"), *given]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        return {"failed": done.stderr[-3000:]}
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def compare(runs: dict[str, list[dict[str, Any]]], workload: Workload) -> dict[str, Any]:
    """Medians of both sides, and TRL over ours: of all iterations, and of each pair of neighbouring processes.

    Without a process of each side that ended well, only the medians of those that did.
    """
    runs = {side: [one for one in measured if "seconds" in one] for side, measured in runs.items()}
    sides = {side: summary(measured) for side, measured in runs.items() if measured}
    if len(sides) < len(runs):
        return dict(sides)
    ratios: dict[str, Any] = {}
    for key in ("seconds", "processor_seconds"):
        pairs = [
            statistics.median(counted(trl[key])) / statistics.median(counted(ours[key]))
            for trl, ours in zip(runs["trl"], runs["ours"], strict=False)
        ]
        ratios[f"times_as_fast_by_{key}"] = {
            "of_medians": round(sides["trl"][key] / sides["ours"][key], 3),
            "of_each_pair": [round(pair, 3) for pair in pairs],
        }
    memory = "peak_gpu_allocated_mib" if GPU else "peak_resident_mib"
    share = sides["ours"][memory] / sides["trl"][memory]
    faster = ratios["times_as_fast_by_seconds"]["of_medians"]
    return {
        **sides,
        **ratios,
        "share_of_peak_memory": {"by": memory, "share": round(share, 3)},
        "reached": {"faster": faster >= workload.target_times_as_fast, "memory": share <= workload.target_memory},
    }


def counted(iterations: list[Any]) -> list[Any]:
    """Without the first and the last."""
    return iterations[1:-1]


def summary(measured: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the iterations of all processes of one side; memory: the largest of its processes."""
    figures: dict[str, Any] = {}
    for key in ("seconds", "processor_seconds"):
        values = [value for one in measured for value in counted(one[key])]
        figures[key] = round(statistics.median(values), 4)
        figures[f"{key}_range"] = [round(min(values), 4), round(max(values), 4)]
    parts = [part for one in measured for part in counted(one["parts"])]
    figures["parts"] = {name: round(statistics.median(part[name] for part in parts), 4) for name in PARTS}
    for key in ("tokens_per_iteration", "rollout_batch_size"):
        figures[key] = measured[0][key]
    for key in [key for key in measured[0] if key.endswith("_mib")]:
        figures[key] = round(max(one[key] for one in measured), 1)
    return figures


def plot(result: dict[str, Any], path: Path) -> None:
    """Seconds of an iteration in its parts, and peak memory, of both."""
    figure = Figure(figsize=(8, 2.6), layout="constrained")
    seconds, memory = figure.subplots(1, 2)
    for row, side in enumerate(NAMES):
        start = 0.0
        for (part, name), color in zip(PARTS.items(), COLORS, strict=True):
            value = result[side]["parts"][part]
            seconds.barh(row, value, left=start, color=color, label=name if row == 0 else None)
            start += value
        seconds.text(start, row, f" {result[side]['seconds']:.2f} s", va="center", fontsize=9)
        key = result["share_of_peak_memory"]["by"]
        memory.barh(row, result[side][key], color="#8a8a8a")
        memory.text(result[side][key], row, f" {result[side][key]:.0f} MiB", va="center", fontsize=9)
    faster = result["times_as_fast_by_seconds"]["of_medians"]
    _dress(seconds, f"Seconds of a PPO iteration ({faster:.2f} times as fast)")
    seconds.legend(frameon=False, fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.12))
    _dress(memory, f"Peak memory ({result['share_of_peak_memory']['share']:.2f} of TRL's)")
    figure.savefig(path, dpi=140)


def _dress(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=9, loc="left")
    axes.set_yticks(range(len(NAMES)), NAMES.values(), fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.margins(x=0.18)
    axes.set_xlim(left=0)
    axes.invert_yaxis()


if __name__ == "__main__":
    main()
