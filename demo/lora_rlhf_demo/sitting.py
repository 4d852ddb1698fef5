"""One person at the label tab: who they are, what is shown to them, and what a click does to it. Knows no gradio."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lora_rlhf.system.errors import UserError
from lora_rlhf_demo import label_show
from lora_rlhf_demo.config import DemoConfig
from lora_rlhf_demo.label import Label, Labelling, label_of
from lora_rlhf_demo.ranker import to_rank
from lora_rlhf_demo.rows import RowFile
from lora_rlhf_demo.runs import folder_of
from lora_rlhf_demo.tasks import Task, labeler_name, read_qualification, read_tasks

RANKINGS = "rankings.jsonl"
CANDIDATES = ("candidates.jsonl", "data/candidates.jsonl")
NO_CANDIDATES = (
    "There is nothing to rank in {run} yet: `lora-rlhf sample --run {run} --prompts FILE --to {run}/candidates.jsonl` "
    "makes it. Or let the model answer a prompt of yours: choose Live."
)
ALL_DONE = "You have ranked everything there is. Thank you."
NOT_MOVED = "You have not changed the order. If it is right as it stands, save once more."


@dataclass(frozen=True)
class Sitting:
    """What one page shows: a labeler, a run, and the task they are at since `begun` (seconds, monotonic)."""

    run: str
    labeler: str = ""
    task: Task | None = None
    label: Label | None = None  # what the task was given before, where it was taken back
    begun: float = 0.0
    is_asked: bool = False  # whether an order that nobody touched was questioned
    note: str = ""
    is_failure: bool = False

    def at(self, task: Task | None, note: str = "", label: Label | None = None) -> "Sitting":
        """With another task."""
        return replace(
            self, task=task, label=label, begun=time.monotonic(), is_asked=False, note=note, is_failure=False
        )

    def failed(self, reason: object) -> "Sitting":
        """Unchanged but for a message."""
        return replace(self, note=str(reason), is_failure=True)

    @property
    def value(self) -> dict[str, Any] | None:
        """What the ranking component shows."""
        task, label = self.task, self.label
        if task is None:
            return None
        order = task.order(self.labeler)
        texts = [task.responses[place] for place in order]
        if label is None:
            return to_rank(task.id, texts)
        return to_rank(
            task.id,
            texts,
            [label.ranks[place] for place in order],
            [label.ratings[place] for place in order],
            [label.flags[place] for place in order],
        )

    @property
    def prompt_flags(self) -> list[str]:
        return [] if self.label is None else list(self.label.prompt_flags)


class Sittings:
    """What clicks at the label tab do. Holds the tasks of each run, which are everybody's; a sitting is the page's."""

    def __init__(self, config: DemoConfig) -> None:
        self.config = config
        self._kept: dict[str, tuple[Any, Labelling]] = {}
        self._lock = threading.Lock()

    def labelling(self, run: str) -> Labelling:
        """The tasks of a run, read anew when a file has changed. UserError where a file cannot be used."""
        folder = folder_of(Path(self.config.root), run)
        candidates = self._candidates(folder)
        exam = None if self.config.qualification is None else Path(self.config.qualification)
        key = [(str(path), *_version(path)) for path in (candidates, exam) if path is not None]
        with self._lock:
            if run not in self._kept or self._kept[run][0] != key:
                saved = folder / RANKINGS if self.config.rankings is None else Path(self.config.rankings)
                tasks = [] if candidates is None else read_tasks(candidates)[0]
                made = Labelling(tasks, RowFile(saved), [] if exam is None else read_qualification(exam))
                self._kept[run] = (key, made)
            return self._kept[run][1]

    def begin(self, run: str, name: Any) -> Sitting:
        """A labeler sits down, where they stopped."""

        def sit() -> Sitting:
            sitting = Sitting(run, labeler_name(name))
            labelling = self.labelling(run)
            if not labelling.tasks and not labelling.exam:
                return sitting.failed(NO_CANDIDATES.format(run=run))
            return self._next(sitting)

        return _or_say(Sitting(run), sit)

    def save(self, sitting: Sitting, value: Mapping[str, Any], prompt_flags: Sequence[str]) -> Sitting:
        """Saves what the page says of its task, and goes on to the next."""

        def saved() -> Sitting:
            task = _require_task(sitting)
            label = label_of(value, task, sitting.labeler, prompt_flags)
            if not value.get("touched") and not sitting.is_asked:
                return replace(sitting, label=label, is_asked=True, note=NOT_MOVED, is_failure=False)
            self.labelling(sitting.run).save(sitting.labeler, task, label, time.monotonic() - sitting.begun)
            return self._next(sitting, "Saved.")

        return _or_say(sitting, saved)

    def skip(self, sitting: Sitting) -> Sitting:
        """Puts the task off."""

        def skipped() -> Sitting:
            self.labelling(sitting.run).skip(sitting.labeler, _require_task(sitting))
            return self._next(sitting, "Skipped.")

        return _or_say(sitting, skipped)

    def undo(self, sitting: Sitting) -> Sitting:
        """Takes back what the labeler did last, and shows it again as it was."""

        def undone() -> Sitting:
            if not sitting.labeler:
                raise UserError("Write your name and begin first.")
            back = self.labelling(sitting.run).undo(sitting.labeler)
            if back is None:
                return sitting.failed("There is nothing to take back.")
            return sitting.at(back[0], "Taken back; save it again.", back[1])

        return _or_say(sitting, undone)

    def show(self, sitting: Sitting, task: Task) -> Sitting:
        """A task that is in no file."""
        return sitting.at(task)

    def progress(self, sitting: Sitting) -> str:
        """How far the labeler has come, as HTML; empty before they began."""
        if not sitting.labeler:
            return ""
        try:
            labelling = self.labelling(sitting.run)
            how, found = labelling.progress(sitting.labeler), labelling.qualification(sitting.labeler)
        except (UserError, OSError):
            return ""
        return label_show.progress(sitting.labeler, how, found, self.config.qualification_agreement)

    def concord(self, run: str) -> str:
        """How far the labelers of a run agree, as HTML."""
        try:
            return label_show.concord(self.labelling(run).concord())
        except (UserError, OSError) as error:
            return label_show.note(str(error), "failure")

    def _next(self, sitting: Sitting, note: str = "") -> Sitting:
        labelling = self.labelling(sitting.run)
        task = labelling.next(sitting.labeler)
        was_exam = sitting.task is not None and sitting.task.known is not None
        if was_exam and (task is None or task.known is None):
            found = labelling.qualification(sitting.labeler)
            note = f"That was the qualification. {label_show.qualified(found, self.config.qualification_agreement)}"
        return sitting.at(task, note if task is not None else f"{note} {ALL_DONE}".strip())

    def _candidates(self, folder: Path) -> Path | None:
        if self.config.responses is not None:
            return Path(self.config.responses)
        return next((folder / name for name in CANDIDATES if (folder / name).is_file()), None)


def _version(path: Path) -> tuple[int, int]:
    """What changes when a file does."""
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"{path.name} cannot be read: {error.strerror}") from error
    return status.st_size, status.st_mtime_ns


def _require_task(sitting: Sitting) -> Task:
    if sitting.task is None:
        raise UserError("There is no prompt to rank: write your name and begin.")
    return sitting.task


def _or_say(sitting: Sitting, act: Callable[[], Sitting]) -> Sitting:
    """What the act makes of it, or the sitting as it was with what went wrong."""
    try:
        return act()
    except UserError as error:
        return sitting.failed(error)
    except OSError as error:
        return sitting.failed(f"It could not be saved ({error.strerror or error}). Nothing is lost: try again.")
