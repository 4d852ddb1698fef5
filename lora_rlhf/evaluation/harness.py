"""EleutherAI's evaluation harness (the `lm-eval` package) on a role of the shared model: its tasks by name."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_rlhf.evaluation.columns import Column
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.system.errors import UserError

INSTALL = "pip install 'lm-eval>=0.4.13'"


def require_harness(tasks: Sequence[str]) -> None:
    """Raises UserError, before any long work, if tasks are named and the package is not installed."""
    if tasks and importlib.util.find_spec("lm_eval") is None:
        raise UserError(f"--lm_eval {','.join(tasks)}: the package lm-eval is not installed; {INSTALL}")


def load_tasks(tasks: Sequence[str]) -> dict[str, Any]:
    """The harness's tasks: each is a name (or a group of tasks) that it knows, or the .yaml file of a task.

    Raises UserError for an unknown name, and for a task whose data cannot be loaded.
    """
    require_harness(tasks)
    from lm_eval.tasks import TaskManager

    files = [str(Path(task).parent.resolve()) for task in tasks if task.endswith(".yaml")]
    has_names = len(files) < len(tasks)  # finding the harness's thousands of tasks takes half a minute
    manager = TaskManager(include_path=sorted(set(files)) or None, include_defaults=has_names)
    names = [_task_name(task) if task.endswith(".yaml") else task for task in tasks]
    if unknown := [name for name in names if name not in manager.task_index]:
        raise UserError(f"--lm_eval: no task {', '.join(unknown)}; `lm-eval ls tasks` prints those there are")
    try:
        return dict(manager.load(names))
    except (OSError, ValueError, ConnectionError) as error:
        raise UserError(f"--lm_eval {','.join(tasks)}: a task's data cannot be loaded ({error})") from error


def _task_name(path: str) -> str:
    """The name in a task's .yaml file."""
    lines = Path(path).read_text(encoding="utf-8").splitlines() if Path(path).is_file() else []
    names = [line.split(":", 1)[1].strip().strip("'\"") for line in lines if line.startswith("task:")]
    if not names:
        raise UserError(f"--lm_eval {path}: no such file, or no line `task: NAME` in it")
    return names[0]


def harness_columns(
    model: SharedModel,
    role_by_system: Mapping[str, str],
    tasks: Mapping[str, Any],
    batch_size: int,
    limit: int | None = None,
) -> dict[str, dict[str, Column]]:
    """{system: {"task/metric": a value for each question}}. `role_by_system`: {system: its role}.

    Questions are asked as the harness asks them, without a chat template; `batch_size` at a time, the first `limit` of
    each task. Metrics that are no mean of a value for each question (a corpus BLEU, for example) are left out.
    """
    from lm_eval.evaluator import evaluate

    from lora_rlhf.evaluation.harness_model import HarnessModel

    columns: dict[str, dict[str, Column]] = {}
    for system, role in role_by_system.items():
        harness_model = HarnessModel(model, role, batch_size)
        results = evaluate(harness_model, dict(tasks), limit=limit, bootstrap_iters=0, log_samples=True)
        columns[system] = {}
        for task, rows in results["samples"].items():
            sorted_rows = sorted(rows, key=lambda row: row["doc_id"])
            for metric in sorted({metric for row in sorted_rows for metric in row["metrics"]}):
                values = [row.get(metric) for row in sorted_rows]
                if all(isinstance(value, bool | int | float) for value in values):
                    is_binary = set(values) <= {0, 1}
                    columns[system][f"{task}/{metric}"] = Column("share" if is_binary else "mean", values)
    return columns
