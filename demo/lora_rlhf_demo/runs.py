"""Which runs there are under the run root, what state each is in, and where its files may lie."""

from dataclasses import dataclass
from pathlib import Path

from lora_rlhf.configs.catalogue import BY_NAME, SFT
from lora_rlhf.runs.manifest import FINISHED, MANIFEST, read_manifest
from lora_rlhf.system.errors import UserError

NO_RUNS = (
    "There is no run in {root} yet. `scripts/quickstart.sh --run {root}/quickstart` makes one in a few "
    "minutes, on any machine; "
    "`lora-rlhf sft --run {root}/mine ...` begins one of your own. Then reload this page."
)


@dataclass(frozen=True)
class RunState:
    """A run's stages and what became of each: "finished", "running" (or left so), or what is wrong with it."""

    name: str
    stages: dict[str, str]

    @property
    def can_chat(self) -> bool:
        """Whether there is a stage to talk to."""
        return self.stages.get(SFT.name) == FINISHED

    @property
    def note(self) -> str:
        """One line about what is there; says what is missing."""
        parts = [f"{stage} {state}" for stage, state in self.stages.items()]
        return f"{self.name}: {', '.join(parts)}" if parts else f"{self.name}: no stage yet"


def list_runs(root: Path) -> list[RunState]:
    """Every folder under the root that holds a stage, the one that changed last first."""
    folders = (
        [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")] if root.is_dir() else []
    )
    found = [(state_of(path), _changed(path)) for path in folders]
    return [state for state, _ in sorted(found, key=lambda pair: -pair[1]) if state.stages]


def state_of(folder: Path) -> RunState:
    """What a run holds. A manifest that cannot be read is said, not raised: the app shows it and goes on."""
    stages = {}
    for stage in BY_NAME:
        if (folder / stage / MANIFEST).is_file():
            try:
                stages[stage] = str(read_manifest(folder / stage)["status"])
            except UserError as error:
                stages[stage] = f"cannot be read ({error})"
    return RunState(folder.name, stages)


def about(root: Path, name: str) -> str:
    """One line on what a run is: its base, and the stages that are finished. UserError as of `folder_of`."""
    folder = folder_of(root, name)
    base = read_manifest(folder / SFT.name)["base"]
    stages = (f"{stage} {state}" for stage, state in state_of(folder).stages.items())
    return f"Base {base['name']} ({base['quantization']}); {', '.join(stages)}."


def folder_of(root: Path, name: str) -> Path:
    """The folder of a run that a browser named. UserError for a name that leads anywhere but into the root."""
    folder = root / name
    if not _is_plain(name) or folder.resolve().parent != root.resolve():
        raise UserError(f"run {name[:80]!r}: not a run in {root.name}/; choose one of the list")
    if not folder.is_dir():
        raise UserError(f"run {name[:80]!r}: no longer there; choose another")
    return folder


def _is_plain(name: str) -> bool:
    """Whether it can be the name of a folder, and leads nowhere else."""
    return name not in ("", ".", "..") and Path(name).name == name and "\0" not in name and len(name.encode()) <= 255


def _changed(folder: Path) -> float:
    """When a stage of the run was last written to."""
    times = [path.stat().st_mtime for stage in BY_NAME for path in [folder / stage / MANIFEST] if path.is_file()]
    return max(times, default=0.0)
