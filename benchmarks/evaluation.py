"""How long `lora-rlhf evaluate` takes: base, SFT model and policy of a run answer 500 prompts, all of it measured.

    python benchmarks/evaluation.py --run runs/quickstart --to benchmarks/results/evaluation.json

The run is a finished one of the quickstart. The prompts are drawn anew, from the tiny world's held-out combinations.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from provenance import provenance

from lora_rlhf.system.disk import write_json
from lora_rlhf.tinyworld.config import TinyworldConfig
from lora_rlhf.tinyworld.datasets import make

PROMPTS = 500
SEED = 11  # not one of the run's own draws


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/quickstart"), help="a finished run of the quickstart")
    parser.add_argument("--to", type=Path, default=Path("benchmarks/results/evaluation.json"))
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = TinyworldConfig(to=folder, seed=SEED, num_evaluation_prompts=PROMPTS)
        make(data)
        started = time.monotonic()
        subprocess.run(
            [
                *(sys.executable, "-m", "lora_rlhf.cli", "evaluate", str(chosen.run)),
                *("--prompts", str(data.path_by_set["evaluation_prompts"]), "--to", f"{folder}/report"),
                *("--max_prompt_tokens", "128", "--max_response_tokens", "64"),
                *("--micro_batch_size", "64", "--generation_batch_size", "416"),
            ],
            check=True,
        )
        wall = time.monotonic() - started
        report = json.loads(Path(folder, "report", "report.json").read_text())
    pair = f"{report['candidate']}_vs_{report['baseline']}"
    result = {
        **provenance(f"python benchmarks/evaluation.py --run {chosen.run} --to {chosen.to}"),
        "prompts": report["sets"]["prompts"]["used"],
        "probes": report["sets"]["probes"]["n"],
        "systems": list(report["systems"]),
        "wall_seconds": round(wall, 1),
        "seconds": {name: value for name, value in report["seconds"].items() if name.startswith("evaluate_")},
        "peak_rss_gib": report["peak_rss_gib"],
        "win_rate": report["win_rates"][pair],
        "flags": {name: flag["raised"] for name, flag in report["audit"]["flags"].items()},
        "left_out": report["left_out"],
    }
    write_json(chosen.to, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
