"""Measures `lora-rlhf data check` on a large file, beside what reading it takes with `datasets`.

    python benchmarks/data_check.py

Writes chosen/rejected rows of 1 KiB each into a temporary folder, then runs, each in a process of its own and in turn:
the check, the check with token counts, and datasets.load_dataset("json") with an empty cache. Seconds include starting
Python. Memory is the most that the process and its children held at once, what they share counted once (PSS).
"""

import argparse
import contextlib
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from provenance import provenance

from lora_rlhf.system.disk import write_json

ROW_BYTES = 1024
WORDS = 20000  # of the vocabulary
INTERVAL = 0.1  # seconds between two looks at the memory
LOAD = """
import sys
from datasets import load_dataset
print(len(load_dataset("json", data_files=sys.argv[1], split="train", cache_dir=sys.argv[2])))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each program; the median is reported")
    parser.add_argument("--to", type=Path, default=Path("benchmarks/results/data_check.json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        with open(file, "w") as out:
            out.writelines(rows(args.rows))
        megabytes = file.stat().st_size / 1e6
        check = [sys.executable, "-m", "lora_rlhf.cli", "data", "check", str(file), "--json"]
        programs = {
            "check": check,
            "check_with_tokens": [*check, "--model", "tinyworld"],
            "datasets_load_json": [sys.executable, "-c", LOAD, str(file)],
        }
        measured: dict[str, list[dict[str, float]]] = {name: [] for name in programs}
        for repeat in range(args.repeats):
            for name, command in programs.items():
                if name == "datasets_load_json":
                    command = [*command, f"{folder}/cache-{repeat}"]
                measured[name].append(measure(command, args.rows))
                print(name, measured[name][-1], flush=True)
    result: dict[str, Any] = {
        **provenance(f"python benchmarks/data_check.py --rows {args.rows} --repeats {args.repeats}"),
        "rows": args.rows,
        "megabytes": round(megabytes, 1),
    }
    for name, runs in measured.items():
        seconds = statistics.median(run["seconds"] for run in runs)
        result[name] = {
            "seconds": round(seconds, 1),
            "mb_per_s": round(megabytes / seconds, 1),
            "peak_mb": round(max(run["peak_mb"] for run in runs)),
            "all_seconds": [round(run["seconds"], 1) for run in runs],
        }
    args.to.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.to, result)
    print(json.dumps(result, indent=2))


def rows(count: int) -> Iterator[str]:
    """Lines of exactly ROW_BYTES; one in a hundred repeats an earlier prompt."""
    rng = random.Random(0)
    words = ["".join(rng.choices("etaoinshrdlucmfwypvbgkjqxz", k=rng.randint(2, 9))) for _ in range(WORDS)]
    earlier = ""
    for number in range(count):
        text = " ".join(rng.choices(words, k=180))
        prompt = earlier if number % 100 == 99 else text[:320]
        earlier = prompt if number % 100 == 0 else earlier
        row = {"prompt": prompt, "chosen": text[320:640], "rejected": ""}
        room = ROW_BYTES - len(json.dumps(row)) - 1
        yield json.dumps({**row, "rejected": text[640 : 640 + room].ljust(room, ".")}) + "\n"


def measure(command: list[str], expected: int) -> dict[str, float]:
    """Seconds and peak memory of one program. RuntimeError if it did not read every row."""
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    peak = 0
    while process.poll() is None:
        peak = max(peak, held(psutil.Process(process.pid)))
        time.sleep(INTERVAL)
    seconds = time.monotonic() - started
    assert process.stdout is not None
    told = process.stdout.read()  # short enough for the pipe to hold it until now
    read = json.loads(told)["files"][0]["rows"]["read"] if "check" in command else int(told)
    if process.returncode or read != expected:
        raise RuntimeError(f"{command} ended with {process.returncode} and read {read} of {expected} rows")
    return {"seconds": seconds, "peak_mb": peak / 1e6}


def held(process: psutil.Process) -> int:
    """Bytes of a process and its children."""
    total = 0
    with contextlib.suppress(psutil.Error):  # one may end while it is looked at
        for one in (process, *process.children(recursive=True)):
            total += one.memory_full_info().pss
    return total


if __name__ == "__main__":
    main()
