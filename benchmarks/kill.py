"""Kills stages and whole recipes with SIGKILL at random instants, and starts each again with the same command.

    python benchmarks/kill.py --kills 60
    python benchmarks/kill.py --kills 20 --commands dpo --to benchmarks/results/kill_dpo.json

After every kill, each file that has its final name must be whole: manifests and configurations parse, every checkpoint
folder matches its hashes, adapters load, only a file that grows may end in a cut line. The same command must then go on
from the newest checkpoint, and what it leaves must equal, bit for bit, what a run that nobody disturbed leaves.

The command line runs in a process of its own on a tiny random model (recipes: on the tiny world). To save the seconds
of importing PyTorch each time, that process is forked from a server that has imported it and done nothing else; kill,
files and file system are real, and nothing is patched. A SIGKILL loses nothing that the kernel had taken, so this says
nothing of what a power cut leaves. Instants: half are uniform over the time that the command takes, a quarter follow
the appearance of a temporary name, and a quarter stand before one of the command's file operations (opening to write,
renaming, making and removing), any of them alike: between two of these a gap is too short to be met by chance.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import xxhash
import yaml
from provenance import provenance
from safetensors.torch import load_file
from tiny import DATA, make_data, make_model

from lora_rlhf.configs.values import read_yaml
from lora_rlhf.model.adapters import read_adapter
from lora_rlhf.runs.manifest import FINISHED, MANIFEST, read_manifest
from lora_rlhf.system.disk import TEMPORARY, write_json

QUICKSTART = Path(__file__).parent.parent / "configs" / "quickstart.yaml"
SHARE = {"sft": 0.15, "reward": 0.15, "dpo": 0.15, "ppo": 0.25, "sample": 0.1, "recipe": 0.2}  # of all kills
KILLS_PER_RUN = 4
AIMS = ("instant", "instant", "temporary", "operation")
OPERATIONS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate")  # as Python's audit names them
SOON = 0.005  # seconds within which the kill follows what it was aimed at
TOLD = ("going on from", "going on after")  # what an attempt says that resumes
GROWING = ("metrics.jsonl", "samples.jsonl")
VARYING = ("seconds", "time/", "memory/", "peak_", "created", "id")  # how the keys begin of what no two runs share
UNDISTURBED = ("undisturbed", "again")  # the runs of a command that are left in peace: these two must not differ
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
PRELOAD = [
    "lora_rlhf.cli.main",
    "lora_rlhf.stages.dpo",
    "lora_rlhf.stages.ppo",
    "lora_rlhf.stages.sample",
    "lora_rlhf.evaluation.report",
    "peft",
]
TRAINING = "--save_every 1 --max_prompt_tokens 48 --max_response_tokens 12 --micro_batch_size 8 --device cpu"
COMMANDS = {
    "sft": f"sft --model {{model}} --demonstrations {{data}}/demonstrations.jsonl --batch_size 6 --epochs 8 "
    f"--lora_rank 4 --lora_dropout 0.1 --learning_rate 5e-3 --validation_fraction 0.1 {TRAINING}",
    "reward": f"reward --rankings {{data}}/rankings.jsonl --batch_size 3 --epochs 5 --learning_rate 2e-3 {TRAINING}",
    "dpo": f"dpo --rankings {{data}}/rankings.jsonl --batch_size 3 --epochs 5 --learning_rate 2e-3 {TRAINING}",
    "ppo": f"ppo --prompts {{data}}/prompts.jsonl --iterations 8 --batch_size 8 --minibatch_size 4 --kl_target 0.5 "
    "--engine static --accept_chance_reward true "
    f"--kl_horizon 32 --warmup_iterations 3 --sample_every 2 --pretraining_text {{data}}/text.jsonl --max_kl null "
    f"--ptx_block_tokens 16 --ptx_shuffle_blocks 5 --policy_learning_rate 2e-3 --value_learning_rate 2e-3 {TRAINING}",
    "sample": "sample --prompts {data}/prompts.jsonl --to {run}/candidates.jsonl --min_responses 2 --max_responses 4 "
    "--engine plain --generation_batch_size 8 --max_prompt_tokens 48 --max_response_tokens 12 --device cpu",
    "recipe": "run --config {data}/recipe.yaml",
}
PARENTS = {
    **{"sft": (), "reward": ("sft",), "dpo": ("sft",), "ppo": ("sft", "reward"), "sample": ("sft",), "recipe": ()},
}
# The quickstart at the smallest size that goes through every section.
SMALL: dict[str, dict[str, Any]] = {
    "tinyworld": {
        **{"num_demonstrations": 48, "num_ranking_prompts": 16, "num_ppo_prompts": 16, "num_pretraining": 4},
        **{"num_evaluation_prompts": 12, "num_selection_prompts": 6},
    },
    "sft": {"epochs": 1, "batch_size": 8, "micro_batch_size": 8},
    "sample": {"min_responses": 2, "max_responses": 3},
    "label": {"overlap": 8},
    "reward": {"batch_size": 4, "micro_batch_size": 8, "validation_fraction": 0.3},
    "ppo": {
        "accept_chance_reward": True,
        "iterations": 4,
        "batch_size": 8,
        "minibatch_size": 8,
        "micro_batch_size": 8,
        "kl_horizon": 100,
    },
    "evaluate": {
        "temperatures": [0.0, 1.0],
        "micro_batch_size": 8,
        "probes": "none",
        "choices": "none",
        "text": "none",
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", nargs="+", choices=list(SHARE), default=list(SHARE))
    parser.add_argument("--to", type=Path, default=Path("benchmarks/results/kill.json"))
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a core is left for the one who watches
    load, started = os.getloadavg()[0], time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        needed = {parent for name in args.commands for parent in PARENTS[name]}
        world = World.make(Path(folder), tuple(name for name in COMMANDS if name in {*needed, *args.commands}))
        total = sum(SHARE[name] for name in args.commands)
        tallies = {
            name: torment(world, name, round(SHARE[name] / total * args.kills), random.Random(f"{args.seed} {name}"))
            for name in args.commands
        }
    faults = [fault for tally in tallies.values() for fault in tally.faults]
    counts = {key: sum(tally.counts()[key] for tally in tallies.values()) for key in Tally().counts()}
    result = {
        **provenance(" ".join(["python benchmarks/kill.py", *sys.argv[1:]])),
        "load_before": round(load, 2),
        "seconds": round(time.monotonic() - started),
        **counts,
        "all_identical": not faults and counts["identical"] == counts["runs"],
        "faults": faults,
        "by_command": {name: tally.counts() | tally.seconds for name, tally in tallies.items()},
    }
    write_json(args.to, result)
    print(json.dumps(result, indent=2))
    sys.exit(bool(faults))


@dataclass
class Tally:
    """What happened to one command: how often, and everything that was not as it must be."""

    kills: int = 0
    during_a_write: int = 0  # a temporary name was left
    resumes: int = 0
    runs: int = 0
    identical: int = 0
    unreadable: int = 0  # files and folders that have their final name and are not whole
    left_behind: int = 0  # temporary names that a run still had when it was done
    abandoned: int = 0  # runs that could not be started again
    faults: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def counts(self) -> dict[str, int]:
        return {key: value for key, value in vars(self).items() if isinstance(value, int)}


@dataclass(frozen=True)
class World:
    """Model, data, and one finished run of everything that nobody disturbed."""

    folder: Path
    context: ForkServerContext
    took: dict[str, float]  # seconds of the undisturbed commands
    operations: dict[str, int]  # and how many file operations they need

    @classmethod
    def make(cls, folder: Path, names: Sequence[str] = tuple(COMMANDS), runs: Sequence[str] = UNDISTURBED) -> "World":
        """RuntimeError if an undisturbed command fails, or a second one leaves something else than the first."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        world = cls(folder, context, {}, {})
        make_model(folder / "model")
        make_data(folder / DATA)
        (folder / DATA / "recipe.yaml").write_text(yaml.safe_dump(small_recipe()))
        for name in names:
            for label in runs:
                run, started = world.new_run(name, label), time.monotonic()
                process = world.start(name, run)
                process.join()
                if process.exitcode:
                    raise RuntimeError(f"{name} ended with {process.exitcode}: {log_of(run).read_text()}")
                world.took[name] = time.monotonic() - started  # of the last one: the first one warms up
                world.operations[name] = int(run.with_suffix(".operations").read_text())
                if different := differences(world.undisturbed(name), run):
                    raise RuntimeError(f"two undisturbed runs of {name} differ in {different}")
        return world

    def undisturbed(self, name: str) -> Path:
        """The finished run of a command that nobody disturbed."""
        return self.folder / f"{name}-{UNDISTURBED[0]}"

    def new_run(self, name: str, label: str) -> Path:
        """A run folder that holds the finished parents of a command."""
        run = self.folder / f"{name}-{label}"
        run.mkdir()
        for parent in PARENTS[name]:
            shutil.copytree(self.undisturbed(parent) / parent, run / parent)
        return run

    def start(self, name: str, run: Path, last: int | None = None) -> ForkServerProcess:
        """One attempt of a command, killed before its file operation of number `last`.

        What it says stands in a file beside the run.
        """
        words = COMMANDS[name].format(model=self.folder / "model", data=self.folder / DATA, run=run).split()
        process = self.context.Process(target=run_command, args=([*words, "--run", str(run)], run, last))
        process.start()
        return process


def run_command(arguments: list[str], run: Path, last: int | None) -> None:
    """Runs in the forked process: the command line, and its exit status."""
    from lora_rlhf.cli.main import main as command_line

    descriptor = os.open(log_of(run), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    done = 0

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal done
        if event not in OPERATIONS:
            return
        if event == "open" and not (str(arguments[0]).startswith(str(run)) and arguments[2] & WRITES):
            return
        done += 1
        if done == last:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    status = command_line(arguments)
    run.with_suffix(".operations").write_text(str(done))
    sys.exit(status)


def torment(world: World, name: str, kills: int, rng: random.Random) -> Tally:
    """Runs of one command, each killed up to KILLS_PER_RUN times and then left in peace, until there were `kills`."""
    tally = Tally(seconds={"seconds_undisturbed": round(world.took[name], 2)})
    while tally.kills < kills and tally.runs + tally.abandoned < 3 * kills:  # if it always ends before it is killed
        run = world.new_run(name, f"{tally.runs + tally.abandoned}")
        planned = min(KILLS_PER_RUN, kills - tally.kills)
        status = None
        for left in range(planned, -1, -1):
            status = _attempt(world, name, run, rng if left else None, tally)
            if status != -signal.SIGKILL:
                break
        if status == 0:
            tally.runs += 1
            tally.left_behind += len(temporary_names(run))
            different = differences(world.undisturbed(name), run)
            tally.identical += not different
            tally.faults += [f"{name}: {one} differs from the undisturbed run's" for one in different]
        else:
            tally.abandoned += 1
            tally.faults.append(f"{name}: ended with {status}: {log_of(run).read_text()[-500:].strip()}")
        print(name, tally.counts(), flush=True)
        shutil.rmtree(run)
    return tally


def _attempt(world: World, name: str, run: Path, rng: random.Random | None, tally: Tally) -> int:
    """Starts the command once and kills it, unless there is no `rng`. 0 when it is done, else as exit statuses are."""
    must_resume, left_before = has_progress(run), temporary_names(run)
    aim = rng.choice(AIMS) if rng else None
    last = rng.randint(1, world.operations[name]) if rng and aim == "operation" else None
    process = world.start(name, run, last)
    if rng is not None and aim in ("instant", "temporary"):
        kill_after(process, run, rng.uniform(0, world.took[name]), rng.uniform(0, SOON) if aim == "temporary" else None)
    process.join()
    told = log_of(run).read_text() if log_of(run).exists() else ""  # it may have been killed before it spoke
    resumed = any(words in told for words in TOLD)
    tally.resumes += resumed
    if process.exitcode == 0 and must_resume and not resumed:
        tally.faults.append(f"{name}: began anew though there was something to go on from")
    if process.exitcode == -signal.SIGKILL:
        tally.kills += 1
        tally.during_a_write += bool(temporary_names(run) - left_before)
        broken = list(unreadable(run))
        tally.unreadable += len(broken)
        tally.faults += [f"{name}: {one}" for one in broken]
        if is_done(name, run):  # killed between its last write and its end
            return 0
    return process.exitcode or 0


def kill_after(process: ForkServerProcess, run: Path, seconds: float, soon: float | None) -> None:
    """SIGKILL after so many seconds; with `soon`, so many after the first temporary name that then appears."""
    process.join(seconds)
    if soon is not None:
        before = temporary_names(run)
        while process.is_alive() and not temporary_names(run) - before:
            pass
        time.sleep(soon)
    process.kill()


def temporary_names(run: Path) -> set[str]:
    """Everything in a run that has a temporary name."""
    return {
        f"{place}/{name}"
        for place, folders, files in os.walk(run)
        for name in (*folders, *files)
        if name.endswith(TEMPORARY)
    }


def unreadable(run: Path) -> Iterator[str]:
    """Everything in a run that has its final name and is not whole, with what is wrong."""
    for path in sorted(run.rglob("*")):
        if any(part.endswith(TEMPORARY) for part in path.relative_to(run).parts):
            continue
        check = _check_of(path)
        try:
            if check is not None:
                check(path)
        except Exception as error:  # whatever it is, a reader would have stumbled over it
            yield f"{path.relative_to(run)}: {type(error).__name__}: {error}"


def _check_of(path: Path) -> Callable[[Path], object] | None:
    """What a reader does with a file or folder of that name; it raises where that is not whole."""
    if path.is_dir():
        return _require_whole if path.name.startswith("step-") else None
    if path.name == MANIFEST:
        return lambda path: read_manifest(path.parent)
    if path.name == "adapter_model.safetensors":
        return lambda path: read_adapter(path.parent)
    readers: dict[str, Callable[[Path], object]] = {
        ".json": lambda path: json.loads(path.read_text()),
        ".jsonl": _read_rows,
        ".partial": _read_rows,
        ".yaml": read_yaml,
        ".safetensors": load_file,
    }
    return readers.get(path.suffix)


def _require_whole(folder: Path) -> None:
    """ValueError unless a checkpoint holds exactly the files that its record lists, with their hashes."""
    outer = json.loads((folder / "checkpoint.json").read_text())
    if xxhash.xxh3_128(outer["record"].encode()).hexdigest() != outer["hash"]:
        raise ValueError("checkpoint.json does not match its hash")
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    listed = json.loads(outer["record"])["files"]
    if files.keys() - {"checkpoint.json"} != listed.keys():
        raise ValueError(f"holds {sorted(files)}, but lists {sorted(listed)}")
    for name, expected in listed.items():
        if xxhash.xxh3_128(files[name].read_bytes()).hexdigest() != expected:
            raise ValueError(f"{name} does not match its hash")


def _read_rows(path: Path) -> list[Any]:
    """The lines, as JSON. Of a file that grows the last one may be cut."""
    lines = path.read_text().splitlines(keepends=True)
    if lines and (path.name in GROWING or path.suffix == ".partial") and not lines[-1].endswith("\n"):
        lines.pop()
    return [json.loads(line) for line in lines]


def is_done(name: str, run: Path) -> bool:
    """Whether the command has nothing left to do."""
    if name == "sample":
        return (run / "candidates.jsonl").is_file()
    if name == "recipe":
        report = run / "report.json"
        return report.is_file() and "base_unchanged" in json.loads(report.read_text())
    return (run / name / MANIFEST).is_file() and read_manifest(run / name)["status"] == FINISHED


def has_progress(run: Path) -> bool:
    """Whether an attempt must go on rather than begin: a stage is unfinished and has a checkpoint, or sampled rows."""
    for partial in run.rglob(".*.partial"):
        if not partial.with_name(partial.name[1:].removesuffix(".partial")).exists() and len(_read_rows(partial)) > 1:
            return True
    folders = (path.parent for path in run.glob(f"*/{MANIFEST}"))
    return any(
        read_manifest(folder)["status"] != FINISHED and any(folder.glob("checkpoints/step-*")) for folder in folders
    )


def differences(one: Path, other: Path) -> list[str]:
    """Files that two finished runs do not have in common, bit for bit, but for times, memory, names and dates.

    Of checkpoints only those are compared that both still have.
    """
    here, there = contents(one), contents(other)
    both = here.keys() & there.keys()
    missing = {name for name in here.keys() ^ there.keys() if "checkpoints/" not in name}
    return sorted(missing | {name for name in both if here[name] != there[name]})


def contents(run: Path) -> dict[str, Any]:
    """What a finished run says and holds, by file."""
    found: dict[str, Any] = {}
    for path in run.rglob("*"):
        name = str(path.relative_to(run))
        if path.name == MANIFEST:
            found[name] = _lasting(read_manifest(path.parent)["results"])
        elif path.suffix == ".safetensors":
            found[name] = path.read_bytes()
        elif path.suffix == ".jsonl":
            found[name] = [_lasting(row) for row in _read_rows(path)]
        elif path.name in ("report.json", "config.yaml", "recipe.yaml"):
            found[name] = _lasting(yaml.safe_load(path.read_text().replace(str(run), "RUN")))
    return found


def _lasting(value: Any) -> Any:
    """The same JSON without what no two runs share."""
    if isinstance(value, dict):
        return {key: _lasting(item) for key, item in value.items() if not key.startswith(VARYING)}
    return [_lasting(item) for item in value] if isinstance(value, list) else value


def small_recipe() -> dict[str, Any]:
    """The quickstart's recipe, made small. The folder of the run is given on the command line."""
    recipe = read_yaml(QUICKSTART) | {"device": "cpu", "save_every": 1, "generation_batch_size": 24}
    del recipe["export"]  # tests/exporting/test_export_kill.py kills that
    recipe |= {"max_response_tokens": 24, "long_responses": "cut"}
    return recipe | {name: recipe[name] | values for name, values in SMALL.items()}


def log_of(run: Path) -> Path:
    """Where an attempt's output goes."""
    return run.with_suffix(".log")


if __name__ == "__main__":
    main()
