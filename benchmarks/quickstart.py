"""What the quickstart costs after its installation: minutes and memory of the whole command, and what comes of it.

    python benchmarks/quickstart.py

The run is made where `scripts/quickstart.sh` makes it, in runs/quickstart, which must not be there yet.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from provenance import provenance

from lora_rlhf.system.disk import write_json

RUN = Path("runs/quickstart")
KIB = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=Path("benchmarks/results/quickstart.json"))
    chosen = parser.parse_args()
    if RUN.exists():
        sys.exit(f"{RUN} is there already: finished steps would be left out; move it away")
    load, started = os.getloadavg()[0], time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "lora_rlhf.cli", "run", "--config", "configs/quickstart.yaml", "--run", str(RUN)],
        check=True,
    )
    wall = time.monotonic() - started
    report = json.loads((RUN / "report.json").read_text())
    pair = f"{report['candidate']}_vs_{report['baseline']}"
    result = {
        **provenance(f"python benchmarks/quickstart.py --to {chosen.to}"),
        "load_before": round(load, 2),
        "wall_seconds": round(wall, 1),
        "seconds": report["seconds"],
        "peak_rss_gib": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * KIB / 2**30, 3),
        "win_rate": {"policy_vs_sft": report["win_rates"][pair]},
        "win_rate_best_temperature": {"policy_vs_sft": report["win_rates_best_temperature"][pair]},
        "flags": {name: flag["raised"] for name, flag in report["audit"]["flags"].items()},
    }
    write_json(chosen.to, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
