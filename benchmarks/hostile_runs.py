"""What each command that reads runs takes for 200 run folders that mean harm, beside what it takes for a good one.

    python benchmarks/hostile_runs.py [--add] [NUMBER ...]

Seconds and memory are those of the command in a fork of a process that has imported all libraries. Of a run that
several sweeps of the file tried, the last one counts.
"""

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from provenance import provenance

from lora_rlhf.system.disk import write_json
from tests.support.hostile_runs import COMMANDS, MOST_MIB, MOST_SECONDS, Place, sweep

MEASURED = ("seconds", "processor_seconds", "mib")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", type=int, nargs="*", default=range(200), help="of runs; else all 200")
    parser.add_argument("--add", action="store_true", help="keep the sweeps that the file holds")
    parser.add_argument("--to", type=Path, default=Path("benchmarks/results/hostile_runs.json"))
    args = parser.parse_args()
    earlier = json.loads(args.to.read_text())["sweeps"] if args.add else []
    found: dict[str, list[Any]] = {command: [] for command in COMMANDS}
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for command, number, outcome, fault in sweep(Place(Path(folder)), args.numbers):
            found[command].append(outcome)
            print(
                f"{command} of run {number}: {outcome.status}, {outcome.seconds:.1f} s, of them computing "
                f"{outcome.processor_seconds:.1f}, {outcome.mib:.0f} MiB",
                flush=True,
            )
            if fault:
                faults.append(f"{command} of run {number}: {fault}")
                print(faults[-1], outcome.said[-3000:], sep="\n", flush=True)
            if command == COMMANDS[-1] and number >= 0:
                write_json(args.to, {"sweeps": [*earlier, result_of(args.numbers, found, faults)]})


def result_of(numbers: Sequence[int], found: dict[str, list[Any]], faults: list[str]) -> dict[str, Any]:
    """The result so far: each command begins with a good run."""
    num_runs = len(found[COMMANDS[-1]]) - 1
    return {
        **provenance(" ".join(["python benchmarks/hostile_runs.py", *map(str, numbers[:num_runs])])),
        "runs": num_runs,
        "allowed_more_than_a_good_run": {"seconds": MOST_SECONDS, "mib": MOST_MIB},
        "faults": faults,
        "commands": {command: figures(*outcomes) for command, outcomes in found.items()},
    }


def figures(good: Any, *hostile: Any) -> dict[str, Any]:
    """Seconds, those of computing, and MiB of a good run, the most of the others, and with which status they ended."""
    return {
        "good": {name: round(getattr(good, name), 2) for name in MEASURED},
        "most": {name: round(max(getattr(outcome, name) for outcome in hostile), 2) for name in MEASURED},
        "statuses": dict(sorted(Counter(str(outcome.status) for outcome in hostile).items())),
    }


if __name__ == "__main__":
    main()
