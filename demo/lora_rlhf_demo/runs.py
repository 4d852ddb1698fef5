"""The runs under the root folder: their names, states and folders."""

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_rlhf.configs.catalogue import BY_NAME, SFT
from lora_rlhf.runs.manifest import FINISHED, MANIFEST, read_manifest
from lora_rlhf.system.errors import UserError
from lora_rlhf.system.plain_files import open_file

EXAMPLE_FILES = ("data/evaluation_prompts.jsonl", "prompts.jsonl", "candidates.jsonl", "data/candidates.jsonl")
NUM_EXAMPLES, MOST_EXAMPLE_CHARACTERS = 5, 120
NO_RUNS = (
    "There is no run in {root} yet. `scripts/quickstart.sh --run {root}/quickstart` makes one in a few "
    "minutes, on any machine; "
    "`lora-rlhf sft --run {root}/mine ...` begins one of your own. Then reload this page."
)


@dataclass(frozen=True)
class RunState:
    """The stages of a run and the state of each: "finished", "running" (or left so), or why it cannot be read."""

    name: str
    stages: dict[str, str]

    @property
    def can_chat(self) -> bool:
        """Whether the run has a model that answers."""
        return self.stages.get(SFT.name) == FINISHED

    @property
    def note(self) -> str:
        """One line with the state of each stage."""
        parts = [f"{stage} {state}" for stage, state in self.stages.items()]
        return f"{self.name}: {', '.join(parts)}" if parts else f"{self.name}: no stage yet"


def list_runs(root: Path) -> list[RunState]:
    """The state of every folder under the root that holds a stage, the last changed one first."""
    paths = root.iterdir() if root.is_dir() else ()
    folders = [path for path in paths if path.is_dir() and not path.is_symlink() and not path.name.startswith(".")]
    states = [(read_run_state(path), _last_change_time(path)) for path in folders]
    return [state for state, _ in sorted(states, key=lambda pair: -pair[1]) if state.stages]


def read_run_state(folder: Path) -> RunState:
    """The state of each stage of a run. An unreadable manifest is a state too, not an error: the app displays it."""
    stages = {}
    for stage in BY_NAME:
        if (folder / stage / MANIFEST).is_file():
            try:
                stages[stage] = str(read_manifest(folder / stage)["status"])
            except UserError as error:
                stages[stage] = f"cannot be read ({error})"
    return RunState(folder.name, stages)


def run_summary(root: Path, name: str) -> str:
    """One line on a run: its base, and the state of its stages. UserError as of `find_run_folder`."""
    folder = find_run_folder(root, name)
    base = read_manifest(folder / SFT.name)["base"]
    stages = (f"{stage} {state}" for stage, state in read_run_state(folder).stages.items())
    return f"Base {base['name']} ({base['quantization']}); {', '.join(stages)}."


def find_run_folder(root: Path, name: str) -> Path:
    """The folder of a run by a name from a browser. UserError for a name that leads outside the root."""
    folder = root / name
    if not _is_plain_name(name) or folder.resolve().parent != root.resolve():
        raise UserError(f"run {name[:80]!r}: not a run in {root.name}/; choose one of the list")
    if not folder.is_dir():
        raise UserError(f"run {name[:80]!r}: no longer there; choose another")
    return folder


def example_prompts(folder: Path) -> list[str]:
    """A few short prompts of the run's own files, to try its stages with; none where it has none."""
    for path in (folder / name for name in EXAMPLE_FILES):
        if path.is_file():
            with open_file(path) as file:
                rows = [_json_or_none(line) for line in itertools.islice(file, 50)]
            texts = [row["prompt"] for row in rows if isinstance(row, dict) and isinstance(row.get("prompt"), str)]
            return [text for text in dict.fromkeys(texts) if len(text) <= MOST_EXAMPLE_CHARACTERS][:NUM_EXAMPLES]
    return []


def _json_or_none(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _is_plain_name(name: str) -> bool:
    """Whether it is the name of one folder, and no path to another."""
    return name not in ("", ".", "..") and Path(name).name == name and "\0" not in name and len(name.encode()) <= 255


def _last_change_time(folder: Path) -> float:
    """Time of the last change of a manifest in the run."""
    times = [path.stat().st_mtime for stage in BY_NAME for path in [folder / stage / MANIFEST] if path.is_file()]
    return max(times, default=0.0)
