"""Tasks and labels for the tests of labelling, and a labeler who runs in a process of their own: without torch."""

from collections.abc import Iterable
from pathlib import Path

from lora_rlhf_demo.label import Labelling
from lora_rlhf_demo.label_value import Label
from lora_rlhf_demo.rows import RowFile
from lora_rlhf_demo.tasks import Task, make_task

from lora_rlhf.data.schema import Prompt

WORDS = "night boat note bread river baker question students sailors ships".split()


def some_tasks(count: int = 5, responses: int = 3) -> list[Task]:
    return [
        make_task(
            Prompt.of(f"Where is the {WORDS[number % 10]} {number}?"),
            [f"{place}: {number}" for place in range(responses)],
        )
        for number in range(count)
    ]


def plain(task: Task, ranks: Iterable[int] | None = None) -> Label:
    count = len(task.responses)
    return Label(tuple(ranks or range(1, count + 1)), (None,) * count, ((),) * count)


def save_all(path: str, labeler: str, count: int) -> None:
    """Labels everything, and notes each task once it is saved."""
    labelling = Labelling(some_tasks(count), RowFile(Path(path)))
    with open(f"{path}.{labeler}", "a") as noted:
        while (task := labelling.next_task(labeler)) is not None:
            labelling.save(labeler, task, plain(task), 0.1)
            noted.write(f"{task.id}\n")
            noted.flush()
