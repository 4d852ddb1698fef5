"""User time of commands in this checkout beside another one, in turns: what a change of the package costs.

    git worktree add /tmp/before COMMIT
    python benchmarks/no_slower.py --before /tmp/before --rows 60000

`data check` of rows of 1 KiB, plain and with token counts; `demo` until its page is there; all commands of the
quickstart with its settings, on fewer rows and steps (SHORTENED), so that pairs of it are affordable.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import yaml
from data_check import rows
from provenance import commit, provenance

from lora_rlhf.system.disk import write_json

HERE = Path(__file__).resolve().parents[1]
PORT = 18260
SHORTENED: dict[str, dict[str, int]] = {
    "tinyworld": {
        "num_demonstrations": 256,
        "num_ranking_prompts": 64,
        "num_ppo_prompts": 288,
        "num_evaluation_prompts": 32,
        "num_selection_prompts": 16,
    },
    "label": {"overlap": 10},
    "ppo": {"iterations": 3, "warmup_iterations": 1, "accept_chance_reward": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="the other checkout")
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quickstarts", type=int, default=3, help="pairs of the shortened quickstart")
    parser.add_argument("--root", type=Path, required=True, help="folder with a run, for the app")
    parser.add_argument("--only", nargs="+", help="of the programs; else all. The rows of others stay in the file")
    parser.add_argument("--to", type=Path, default=Path("benchmarks/results/no_slower.json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        file.write_text("".join(rows(args.rows)))
        quickstart = Path(folder) / "quickstart.yaml"
        quickstart.write_text(shortened_quickstart())
        check = ["data", "check", str(file), "--json"]
        programs: dict[str, tuple[int, list[str]]] = {
            "data check": (args.repeats, check),
            "data check with tokens": (args.repeats, [*check, "--model", "tinyworld"]),
            "first page": (args.repeats, ["demo", "--root", str(args.root), "--port", str(PORT)]),
            "quickstart": (args.quickstarts, ["run", "--config", str(quickstart), "--run", f"{folder}/NEW"]),
        }
        measured = json.loads(args.to.read_text())["user_seconds"] if args.only and args.to.exists() else {}
        for name in args.only or programs:
            repeats, words = programs[name]
            measured[name] = compare(args.before, words, repeats) | {"commit": commit()}
    command = f"python benchmarks/no_slower.py --before BEFORE --root ROOT --rows {args.rows} --repeats {args.repeats}"
    before = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=args.before
    ).stdout.strip()
    result = {
        **provenance(command),
        "before": before,
        "rows": args.rows,
        "quickstart": SHORTENED,
        "user_seconds": measured,
    }
    write_json(args.to, result)
    print(json.dumps(result, indent=2))


def shortened_quickstart() -> str:
    """The quickstart's recipe with the numbers of SHORTENED."""
    recipe = yaml.safe_load((HERE / "configs/quickstart.yaml").read_text())
    for step, numbers in SHORTENED.items():
        recipe[step] |= numbers
    return yaml.safe_dump(recipe, sort_keys=False)


def compare(before: Path, words: list[str], repeats: int) -> dict[str, Any]:
    """User seconds of both checkouts, medians of turns, and how many times as long this one takes."""
    seconds: dict[str, list[float]] = {"before": [], "now": []}
    for repeat in range(repeats):
        for name in list(seconds)[:: 1 if repeat % 2 else -1]:
            root = HERE if name == "now" else before.resolve()
            seconds[name].append(user_seconds(root, [word.replace("NEW", f"{name}{repeat}") for word in words]))
            print(words[:2], name, seconds[name][-1], flush=True)
    row: dict[str, Any] = {name: round(statistics.median(values), 2) for name, values in seconds.items()}
    pairs = [now / earlier for earlier, now in zip(*seconds.values(), strict=True)]
    return {**row, "times": round(statistics.median(pairs), 3), "of_each_pair": [round(pair, 3) for pair in pairs]}


def user_seconds(root: Path, words: list[str]) -> float:
    """User seconds of a command of the checkout there, those of its children included; of `demo`, up to its page."""
    environment = os.environ | {"PYTHONPATH": f"{root}:{root / 'demo'}"}
    process = subprocess.Popen(
        [sys.executable, "-m", "lora_rlhf.cli", *words],
        cwd=root,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    if words[0] == "demo":
        await_page()
        process.kill()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, *((-9,) if words[0] == "demo" else ())):
        raise RuntimeError(f"{words} ended with {process.returncode} in {root}")
    return usage.ru_utime


def await_page() -> None:
    for _ in range(2000):
        with contextlib.suppress(OSError):
            for path in ("", "config"):
                urllib.request.urlopen(f"http://127.0.0.1:{PORT}/{path}", timeout=30).read()
            return
        time.sleep(0.02)
    raise RuntimeError("the app did not start")


if __name__ == "__main__":
    main()
