"""Rows that a judge makes of tasks, group by group: what is done is kept, and what failed or was spent is counted."""

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from lora_rlhf.configs.label import JudgeLabelConfig, ReviseConfig
from lora_rlhf.configs.marks import SAFE_TO_CHANGE_ON_RESUME, fields_with_mark
from lora_rlhf.data.outputs import require_output
from lora_rlhf.data.refusals import BadRow, RefusedRows, pluralize
from lora_rlhf.data.schema import Prompt
from lora_rlhf.data.sources import Source
from lora_rlhf.judges.asking import Asker
from lora_rlhf.judges.question import read_criteria
from lora_rlhf.runs.folder import data_hash
from lora_rlhf.stages.interrupt import graceful
from lora_rlhf.stages.partial import PartialOutput, progress
from lora_rlhf.system.errors import Stopped, UserError
from lora_rlhf.system.plain_files import read_file

log = logging.getLogger("lora_rlhf")

PRINCIPLES = Path(__file__).parents[1] / "judges" / "principles.md"
SUMMED = (
    *("cached", "without_usage", "seconds", "shortened", "pairs", "identical", "failures"),
    *("inconsistent", "inconsistent_for_first", "inconsistent_for_second"),
)  # counts of an attempt; those that are not here stand for all attempts already

Task = TypeVar("Task")
Item = TypeVar("Item")
Row = dict[str, Any]


def require_new_output(config: JudgeLabelConfig | ReviseConfig, *inputs: str | None) -> None:
    """UserError unless `to` can be written, and is new or may be replaced."""
    require_output("--to", config.to, [path for path in inputs if path])
    if Path(config.to).exists() and not config.overwrite:
        raise UserError(f"{config.to} is there already; use --overwrite to replace it, or choose another --to")


def read_principles(path: str | None) -> tuple[str, str]:
    """(the text of a file of principles, its sha256); the built-in ones without a path. UserError if it is empty."""
    path = path or str(PRINCIPLES)
    text = read_criteria(path, "principles")
    return text, hashlib.sha256(read_file(Path(path).expanduser(), follow_links=True)).hexdigest()


def read_items(path: str, make: Callable[[Prompt], Item], purpose: str) -> list[Item]:
    """What `make` makes of each row that `sample` wrote. Rows that it refuses (BadRow) are left out with a warning.

    UserError if none is left: there is nothing to `purpose`.
    """
    source: Source[Prompt] = Source(path, "prompts")
    items, refused = list[Item](), RefusedRows()
    for prompt in source:
        try:
            items.append(make(prompt))
        except BadRow as fault:
            refused.add(prompt.origin, fault)
    refused.extend(source.refused)
    if not items:
        raise UserError(f"{path}: nothing to {purpose}. {refused.summary()}")
    if summary := refused.summary():
        log.warning("%s:\n%s", path, summary)
    return items


def judged_from(config: JudgeLabelConfig | ReviseConfig, asker: Asker, principles_hash: str) -> Row:
    """All that the output depends on: settings, principles, responses and the judge."""
    safe = {*fields_with_mark(type(config), SAFE_TO_CHANGE_ON_RESUME), "responses", "principles"}
    settings = {key: value for key, value in vars(config).items() if key not in safe}
    about = {"principles": principles_hash, "responses": data_hash(config.responses)}
    return {**settings, **about, **asker.model.identity()}


class JudgedRows:
    """The judge's work on an output file `to`, over all attempts.

    made_from: all that the output depends on; an unfinished attempt of the same goes on. describe: the judge's identity
    and its counts in this attempt. verb: what the command does, for the progress bar.
    """

    def __init__(
        self, to: str, asker: Asker, made_from: Mapping[str, Any], describe: Callable[[], Row], verb: str
    ) -> None:
        self._asker, self._describe_attempt, self._verb = asker, describe, verb
        self._partial = PartialOutput(to, made_from)
        self._earlier: Row = {"faults": {}}

    def make(
        self, tasks: Sequence[Task], step: int, work: Callable[[Sequence[Task]], list[Row | None]]
    ) -> list[Row | None]:
        """The row of each task, None where the judge failed; `step` tasks at a time are given to `work`.

        UserError if the judge failed on every task; Stopped by a signal, or by a server that does not answer any more.
        """
        lines = self._partial.begin()
        rows: list[Row | None] = [row for line in lines for row in line.get("rows", ())]
        if lines:
            self._asker.counts.load_state_dict(lines[-1]["spent"])
            self._earlier = next((line["judge"] for line in reversed(lines) if "judge" in line), self._earlier)
            log.info("going on after %d prompts, which %s holds", len(rows), self._partial.path)
        if len(rows) < len(tasks):
            self._make_rest(tasks, rows, step, work)
        if not any(rows):
            self._partial.path.unlink()  # an attempt with the same settings asks again
            raise UserError(
                f"{self._asker.choice}: {self._asker.model_name} failed on {pluralize(len(tasks), 'prompt')}, which is "
                f"all ({self.faults_text()}); choose another judge, or mend this one"
            )
        return rows

    def finish(self, rows: Sequence[Row]) -> None:
        """Writes the output, and removes the file of what is done."""
        self._partial.finish(rows)

    def describe(self) -> Row:
        """The judge's identity and counts, those of earlier attempts included."""
        now, earlier = self._describe_attempt(), self._earlier
        summed = {name: round(now[name] + earlier.get(name, 0), 2) for name in SUMMED if name in now}
        about = {**now, **summed, "faults": dict(Counter(now["faults"]) + Counter(earlier["faults"]))}
        if "pairs" in about:
            num_judged = about["pairs"] - about["identical"] - about["failures"]
            about["inconsistent_share"] = about["inconsistent"] / num_judged if num_judged else None
        return about

    def faults_text(self) -> str:
        """How often the judge failed in which way."""
        faults = self.describe()["faults"].items()
        return ", ".join(f"{fault}: {count}" for fault, count in faults) or "no fault in a reply"

    def _make_rest(
        self,
        tasks: Sequence[Task],
        rows: list[Row | None],
        step: int,
        work: Callable[[Sequence[Task]], list[Row | None]],
    ) -> None:
        """Appends a row, or None where the judge failed, for each task that has none yet."""
        bar = tqdm(total=len(tasks), initial=len(rows), desc=self._verb, unit="prompt", disable=None)
        with graceful("group of prompts") as request, bar:
            try:
                while len(rows) < len(tasks):
                    new_rows = work(tasks[len(rows) : len(rows) + step])
                    if self._asker.counts.down:
                        text = f"the server did not answer at any try ({self.faults_text()})"
                        raise Stopped(f"{text}. {progress(rows, tasks)}")
                    spent = self._asker.counts.state_dict()
                    self._partial.add({"rows": new_rows, "spent": spent, "judge": self.describe()})
                    rows += new_rows
                    bar.update(len(new_rows))
                    if request.is_made and len(rows) < len(tasks):
                        raise Stopped(progress(rows, tasks), request.exit_status)
            except (UserError, Stopped):  # what the last calls have cost counts for the budget of the next attempt
                self._partial.add({"spent": self._asker.counts.state_dict()})
                raise
