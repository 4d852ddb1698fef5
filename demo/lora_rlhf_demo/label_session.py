"""The state of a page of the Label tab and what a click does to it, without gradio."""

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
class LabelSession:
    """What one page displays: a run, a labeler and their task, which they began at `begun` (seconds, monotonic).

    label: the task's former label, where it was taken back. is_asked: whether the page has asked to confirm an order
    that nobody changed.
    """

    run: str
    labeler: str = ""
    task: Task | None = None
    label: Label | None = None
    begun: float = 0.0
    is_asked: bool = False
    note: str = ""
    is_failure: bool = False

    def at(self, task: Task | None, note: str = "", label: Label | None = None) -> "LabelSession":
        """The session with another task."""
        return replace(
            self, task=task, label=label, begun=time.monotonic(), is_asked=False, note=note, is_failure=False
        )

    def failed(self, reason: object) -> "LabelSession":
        """The session with a message of what failed, else unchanged."""
        return replace(self, note=str(reason), is_failure=True)

    @property
    def value(self) -> dict[str, Any] | None:
        """The value of the ranking component."""
        task, label = self.task, self.label
        if task is None:
            return None
        order = task.order(self.labeler)
        texts = [task.responses[index] for index in order]
        if label is None:
            return to_rank(task.id, texts)
        return to_rank(
            task.id,
            texts,
            [label.ranks[index] for index in order],
            [label.ratings[index] for index in order],
            [label.flags[index] for index in order],
        )

    @property
    def prompt_flags(self) -> list[str]:
        return [] if self.label is None else list(self.label.prompt_flags)


class LabelActions:
    """What clicks in the Label tab do. All pages share the tasks of each run; each page has its own session."""

    def __init__(self, config: DemoConfig) -> None:
        self.config = config
        self._labellings: dict[str, tuple[Any, Labelling]] = {}  # {run: (versions of its files, tasks)}
        self._lock = threading.Lock()

    def labelling(self, run: str) -> Labelling:
        """The tasks of a run, read again when a file has changed. UserError for a file that cannot be used."""
        folder = folder_of(Path(self.config.root), run)
        responses = self._responses(folder)
        exam = None if self.config.qualification is None else Path(self.config.qualification)
        versions = [(str(path), *_version(path)) for path in (responses, exam) if path is not None]
        with self._lock:
            if run not in self._labellings or self._labellings[run][0] != versions:
                rankings = folder / RANKINGS if self.config.rankings is None else Path(self.config.rankings)
                tasks = [] if responses is None else read_tasks(responses)[0]
                labelling = Labelling(tasks, RowFile(rankings), [] if exam is None else read_qualification(exam))
                self._labellings[run] = (versions, labelling)
            return self._labellings[run][1]

    def begin(self, run: str, name: Any) -> LabelSession:
        """A labeler begins, or goes on where they stopped."""

        def begun() -> LabelSession:
            session = LabelSession(run, labeler_name(name))
            labelling = self.labelling(run)
            if not labelling.tasks and not labelling.exam:
                return session.failed(NO_CANDIDATES.format(run=run))
            return self._next(session)

        return _or_failed(LabelSession(run), begun)

    def save(self, session: LabelSession, value: Mapping[str, Any], prompt_flags: Sequence[str]) -> LabelSession:
        """Saves the label that the page sends, and goes on to the next task."""

        def saved() -> LabelSession:
            task = _require_task(session)
            label = label_of(value, task, session.labeler, prompt_flags)
            if not value.get("touched") and not session.is_asked:
                return replace(session, label=label, is_asked=True, note=NOT_MOVED, is_failure=False)
            self.labelling(session.run).save(session.labeler, task, label, time.monotonic() - session.begun)
            return self._next(session, "Saved.")

        return _or_failed(session, saved)

    def skip(self, session: LabelSession) -> LabelSession:
        """Moves the task to the end."""

        def skipped() -> LabelSession:
            self.labelling(session.run).skip(session.labeler, _require_task(session))
            return self._next(session, "Skipped.")

        return _or_failed(session, skipped)

    def undo(self, session: LabelSession) -> LabelSession:
        """Takes back the labeler's last task, and displays it again as it was."""

        def undone() -> LabelSession:
            if not session.labeler:
                raise UserError("Write your name and begin first.")
            last = self.labelling(session.run).undo(session.labeler)
            if last is None:
                return session.failed("There is nothing to take back.")
            return session.at(last[0], "Taken back; save it again.", last[1])

        return _or_failed(session, undone)

    def show(self, session: LabelSession, task: Task) -> LabelSession:
        """The session with a task that is in no file."""
        return session.at(task)

    def progress(self, session: LabelSession) -> str:
        """The labeler's progress as HTML; empty before they begin."""
        if not session.labeler:
            return ""
        try:
            labelling = self.labelling(session.run)
            progress, qualification = labelling.progress(session.labeler), labelling.qualification(session.labeler)
        except (UserError, OSError):
            return ""
        return label_show.progress_html(session.labeler, progress, qualification, self.config.qualification_agreement)

    def agreement(self, run: str) -> str:
        """How far the labelers of a run agree, as HTML."""
        try:
            return label_show.agreement_table(self.labelling(run).agreement())
        except (UserError, OSError) as error:
            return label_show.note(str(error), "failure")

    def _next(self, session: LabelSession, note: str = "") -> LabelSession:
        labelling = self.labelling(session.run)
        task = labelling.next(session.labeler)
        was_exam = session.task is not None and session.task.known is not None
        if was_exam and (task is None or task.known is None):
            qualification = labelling.qualification(session.labeler)
            result = label_show.qualified(qualification, self.config.qualification_agreement)
            note = f"That was the qualification. {result}"
        return session.at(task, note if task is not None else f"{note} {ALL_DONE}".strip())

    def _responses(self, folder: Path) -> Path | None:
        if self.config.responses is not None:
            return Path(self.config.responses)
        return next((folder / name for name in CANDIDATES if (folder / name).is_file()), None)


def _version(path: Path) -> tuple[int, int]:
    """Size and time of a file: they change when the file does."""
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"{path.name} cannot be read: {error.strerror}") from error
    return status.st_size, status.st_mtime_ns


def _require_task(session: LabelSession) -> Task:
    if session.task is None:
        raise UserError("There is no prompt to rank: write your name and begin.")
    return session.task


def _or_failed(session: LabelSession, action: Callable[[], LabelSession]) -> LabelSession:
    """The session after the action; if it fails, the session as it was, with the reason."""
    try:
        return action()
    except UserError as error:
        return session.failed(error)
    except OSError as error:
        return session.failed(f"It could not be saved ({error.strerror or error}). Nothing is lost: try again.")
