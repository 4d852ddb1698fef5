"""The state of a page of the Label tab and what a click does to it, without gradio."""

import difflib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lora_rlhf.data.refusals import pluralize
from lora_rlhf.system.errors import UserError
from lora_rlhf.system.plain_files import require_no_link
from lora_rlhf_demo import label_show
from lora_rlhf_demo.config import DemoConfig
from lora_rlhf_demo.label import Labelling, Workload
from lora_rlhf_demo.label_value import Label, label_from_page
from lora_rlhf_demo.ranker import ranker_value
from lora_rlhf_demo.rows import RowFile
from lora_rlhf_demo.runs import find_run_folder
from lora_rlhf_demo.tasks import Task, parse_labeler_name, read_qualification, read_tasks

RANKINGS = "rankings.jsonl"
CANDIDATES = ("candidates.jsonl", "data/candidates.jsonl")
NO_CANDIDATES = (
    "There is nothing to rank in {run} yet: `lora-rlhf sample --run {run} --prompts FILE --to {run}/candidates.jsonl` "
    "makes it. Or let the model answer a prompt of yours: choose Live."
)
ALL_DONE = "You have ranked everything there is. Thank you."
NOTHING_PLACED = "You have not ranked any answer. If all are equally good, save once more; otherwise rank or skip."
NOT_LAST = "{count} you have not ranked would be saved as better than others. If that is right, save once more."
UNREAD = "You have not opened {count} to the end. Open what is long, or save once more to rank it unread."
NAME_IN_USE = (
    "{name} has ranked here from another browser. If that was you, press Begin once more. If not, write your name with "
    "something that tells you apart, such as an initial."
)
TWICE = "You had ranked this prompt already; that ranking stays. Undo takes it back."


@dataclass(frozen=True)
class LabelSession:
    """What one page displays: a run, a labeler and their task, which they began at `start_time` (seconds, monotonic).

    label: the task's former label, if it was taken back. is_placed: whether the labeler ranked each answer, in the
    order of display; empty: all of a former label, otherwise none. has_asked_to_confirm: whether the page has asked to
    confirm an order that the labeler did not give, or did not read. saved_task: the last task whose label is on disk,
    so that the browser forgets its draft. asked_name: a name in use elsewhere, which the page asked to confirm.
    """

    run: str
    labeler: str = ""
    saved_task: str = ""
    asked_name: str = ""
    task: Task | None = None
    label: Label | None = None
    is_placed: tuple[bool, ...] = ()
    start_time: float = 0.0
    has_asked_to_confirm: bool = False
    note: str = ""
    is_failure: bool = False

    def with_task(self, task: Task | None, note: str = "", label: Label | None = None) -> "LabelSession":
        """The session with another task, which begins now."""
        return replace(
            self,
            task=task,
            label=label,
            is_placed=(),
            start_time=time.monotonic(),
            has_asked_to_confirm=False,
            note=note,
            is_failure=False,
        )

    def with_failure(self, reason: object) -> "LabelSession":
        """The session with a message of what failed; all else stays."""
        return replace(self, note=str(reason), is_failure=True)

    @property
    def value(self) -> dict[str, Any] | None:
        """The value of the ranking component; None without a task."""
        task, label = self.task, self.label
        if task is None:
            return None
        order = task.display_order(self.labeler)
        texts = [task.responses[index] for index in order]
        ended = [task.ended[index] for index in order] if task.ended else []
        about = {"labeler": self.labeler, "saved": self.saved_task, "ended": ended}
        if label is None:
            return ranker_value(task.id, texts) | about
        shown = ranker_value(
            task.id,
            texts,
            [label.ranks[index] for index in order],
            self.is_placed,
            [label.ratings[index] for index in order],
            [label.flags[index] for index in order],
        )
        written = {name: getattr(label, name) for name in ("comment", "ideal")}
        chosen = {"prompt_flags": list(label.prompt_flags), "reasons": list(label.reasons)}
        return shown | about | written | chosen | {"read": [index not in label.unread for index in order]}


class LabelActions:
    """What clicks in the Label tab do. All pages share the tasks of each run; each page has its own session."""

    def __init__(self, config: DemoConfig) -> None:
        self.config = config
        self._labellings: dict[str, tuple[Any, Labelling]] = {}  # {run: (versions of its files, tasks)}
        self._lock = threading.Lock()

    def read_labelling(self, run: str) -> Labelling:
        """The tasks of a run, read again when a file has changed. UserError for a file that cannot be used."""
        folder = find_run_folder(Path(self.config.root), run)
        responses_path = self._responses_path(folder)
        exam_path = None if self.config.qualification is None else Path(self.config.qualification)
        versions = [(str(path), *_size_and_time(path)) for path in (responses_path, exam_path) if path is not None]
        with self._lock:
            if run not in self._labellings or self._labellings[run][0] != versions:
                rankings_path = folder / RANKINGS if self.config.rankings is None else Path(self.config.rankings)
                tasks = [] if responses_path is None else read_tasks(responses_path)[0]
                exam = [] if exam_path is None else read_qualification(exam_path)
                workload = Workload(self.config.people_per_prompt, self.config.quota, self.config.labelers)
                labelling = Labelling(tasks, RowFile(rankings_path), exam, workload)
                self._labellings[run] = (versions, labelling)
            return self._labellings[run][1]

    def runs_to_label(self) -> list[str]:
        """The folders under the root that hold something to rank, the run of --run first, else the newest."""
        root = Path(self.config.root)
        folders = [
            path for path in (root.iterdir() if root.is_dir() else ()) if path.is_dir() and not path.is_symlink()
        ]
        if self.config.responses is None:
            folders = [path for path in folders if any((path / name).is_file() for name in CANDIDATES)]
        folders.sort(key=lambda path: (path.name != self.config.run, -path.stat().st_mtime))
        return [path.name for path in folders]

    def begin(
        self, run: str, name: Any, browser: str = "", asked_name: str = "", is_return: bool = False
    ) -> LabelSession:
        """Begins as a labeler of that name, at the first task that they have not done.

        browser: a secret of this browser. A name that came from another browser alone is asked about once, since two
        people may have one name; is_return: who came back to a page under a stored name is not.
        """

        def begin_or_resume() -> LabelSession:
            labeler = parse_labeler_name(name)
            _require_listed(labeler, self.config.labelers)
            session = LabelSession(run, labeler)
            labelling = self.read_labelling(run)
            if not labelling.tasks and not labelling.exam:
                return session.with_failure(NO_CANDIDATES.format(run=run))
            if browser:
                is_other = labelling.is_of_another_browser(labeler, browser)
                if is_other and not is_return and asked_name != labeler:
                    return replace(LabelSession(run, asked_name=labeler), note=NAME_IN_USE.format(name=labeler))
                labelling.add_browser(labeler, browser)
            return self._go_to_next_task(session)

        return _try_action(LabelSession(run), begin_or_resume)

    def save(self, session: LabelSession, value: Mapping[str, Any]) -> LabelSession:
        """Saves the label that the page sends, and goes to the next task."""

        def save_label() -> LabelSession:
            task = _require_task(session)
            label = label_from_page(value, task, session.labeler)
            is_placed = _placed_from_page(value, len(task.responses))
            question = "" if session.has_asked_to_confirm else _order_question(value["ranks"], is_placed, label)
            if question:
                asked = replace(session, label=label, is_placed=is_placed, has_asked_to_confirm=True)
                return replace(asked, note=question, is_failure=False)
            labelling = self.read_labelling(session.run)
            is_new = labelling.save(session.labeler, task, label, time.monotonic() - session.start_time)
            num_unplaced = is_placed.count(False)
            shared = (
                f" {pluralize(num_unplaced, 'answer')} you did not rank share the last rank."
                if num_unplaced > 1
                else ""
            )
            note = "Saved." + ("" if session.has_asked_to_confirm else shared)
            return self._go_to_next_task(replace(session, saved_task=task.id), note if is_new else TWICE)

        return _try_action(session, save_label)

    def skip(self, session: LabelSession) -> LabelSession:
        """Moves the task to the end."""

        def skip_task() -> LabelSession:
            self.read_labelling(session.run).skip(session.labeler, _require_task(session))
            return self._go_to_next_task(session, "Skipped.")

        return _try_action(session, skip_task)

    def undo(self, session: LabelSession) -> LabelSession:
        """Takes back the labeler's last task, and displays it again with its label."""

        def undo_last() -> LabelSession:
            if not session.labeler:
                raise UserError("Write your name and begin first.")
            last_task_and_label = self.read_labelling(session.run).undo_last(session.labeler)
            if last_task_and_label is None:
                return session.with_failure("There is nothing to take back.")
            return session.with_task(last_task_and_label[0], "Taken back; save it again.", last_task_and_label[1])

        return _try_action(session, undo_last)

    def show(self, session: LabelSession, task: Task) -> LabelSession:
        """The session with a task that is in no file."""
        return session.with_task(task)

    def progress_html(self, session: LabelSession) -> str:
        """The labeler's progress as HTML; empty before they begin."""
        if not session.labeler:
            return ""
        try:
            labelling = self.read_labelling(session.run)
            progress, qualification = labelling.progress(session.labeler), labelling.qualification(session.labeler)
        except (UserError, OSError):
            return ""
        return label_show.progress_html(session.labeler, progress, qualification, self.config.qualification_agreement)

    def _go_to_next_task(self, session: LabelSession, note: str = "") -> LabelSession:
        """The session with the labeler's next task, and after the exam with its result."""
        labelling = self.read_labelling(session.run)
        task = labelling.next_task(session.labeler)
        is_exam_task = session.task is not None and session.task.known_ranks is not None
        if is_exam_task and (task is None or task.known_ranks is None):
            qualification = labelling.qualification(session.labeler)
            result_sentence = label_show.qualification_sentence(qualification, self.config.qualification_agreement)
            note = f"That was the qualification. {result_sentence}"
        return session.with_task(task, note if task is not None else f"{note} {ALL_DONE}".strip())

    def _responses_path(self, folder: Path) -> Path | None:
        """The file with responses to rank: the one of --responses, or the run's own; None if there is none."""
        if self.config.responses is not None:
            return Path(self.config.responses)
        path = next((folder / name for name in CANDIDATES if (folder / name).is_file()), None)
        if path is not None:
            require_no_link(path.parent, path)  # a run of a stranger's shows no file from outside it
        return path


def _placed_from_page(value: Mapping[str, Any], num_answers: int) -> tuple[bool, ...]:
    """Whether the labeler ranked each answer, as the page says; none if it says nothing that can be true."""
    placed = value.get("placed")
    if not isinstance(placed, list) or len(placed) != num_answers:
        return (False,) * num_answers
    return tuple(one is True for one in placed)


def _order_question(ranks: Sequence[int], is_placed: Sequence[bool], label: Label) -> str:
    """What to ask before an order is saved; empty if the labeler gave it: who was not ranked shares the last rank."""
    questions = [] if any(is_placed) or label.ideal.strip() else [NOTHING_PLACED]
    num_above = sum(rank < max(ranks) for rank, placed in zip(ranks, is_placed, strict=True) if not placed)
    if num_above and any(is_placed):
        questions.append(NOT_LAST.format(count=pluralize(num_above, "answer")))
    if label.unread:
        questions.append(UNREAD.format(count=pluralize(len(label.unread), "answer")))
    return " ".join(questions)


def _require_listed(labeler: str, names: Sequence[str]) -> None:
    """UserError for a labeler who is not among --labelers, if there are such names."""
    if names and labeler not in names:
        near = difflib.get_close_matches(labeler.casefold(), [name.casefold() for name in names], n=1)
        meant = next((name for name in names if near and name.casefold() == near[0]), "")
        hint = f"Did you mean {meant}?" if meant else "Ask whoever sent you here under which name you are listed."
        raise UserError(f"{labeler} is not among the labelers of this page. {hint}")


def _size_and_time(path: Path) -> tuple[int, int]:
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


def _try_action(session: LabelSession, action: Callable[[], LabelSession]) -> LabelSession:
    """The session after the action; if the action fails, the session as it was, with the reason."""
    try:
        return action()
    except UserError as error:
        return session.with_failure(error)
    except OSError as error:
        return session.with_failure(f"It could not be saved ({error.strerror or error}). Nothing is lost: try again.")
