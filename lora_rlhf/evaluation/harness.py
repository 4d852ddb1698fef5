"""EleutherAI's evaluation harness (the `lm-eval` package) on a role of the shared model: its tasks by name."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_rlhf.evaluation.columns import Column
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.system.errors import UserError

INSTALL = "pip install 'lora-rlhf[lm-eval]'"


def require_harness(tasks: Sequence[str]) -> None:
    """UserError, before anything long, where tasks are asked for and the package is not there."""
    if tasks and importlib.util.find_spec("lm_eval") is None:
        raise UserError(f"--lm_eval {','.join(tasks)}: the package lm-eval is not installed; {INSTALL}")


def load_tasks(tasks: Sequence[str]) -> dict[str, Any]:
    """The harness's tasks: each a name (or a group of tasks) that it knows, or a task's own .yaml file.

    UserError for a name that it does not know, and for a task whose data cannot be had.
    """
    require_harness(tasks)
    from lm_eval.tasks import TaskManager

    files = [str(Path(task).parent.resolve()) for task in tasks if task.endswith(".yaml")]
    has_names = len(files) < len(tasks)  # its own thousands of tasks take half a minute to find
    manager = TaskManager(include_path=sorted(set(files)) or None, include_defaults=has_names)
    names = [_task_name(task) if task.endswith(".yaml") else task for task in tasks]
    if unknown := [name for name in names if name not in manager.task_index]:
        raise UserError(f"--lm_eval: no task {', '.join(unknown)}; `lm-eval ls tasks` prints those there are")
    try:
        return dict(manager.load(names))
    except (OSError, ValueError, ConnectionError) as error:
        raise UserError(f"--lm_eval {','.join(tasks)}: a task's data cannot be loaded ({error})") from error


def _task_name(path: str) -> str:
    """The name that a task's file gives it."""
    lines = Path(path).read_text(encoding="utf-8").splitlines() if Path(path).is_file() else []
    names = [line.split(":", 1)[1].strip().strip("'\"") for line in lines if line.startswith("task:")]
    if not names:
        raise UserError(f"--lm_eval {path}: no such file, or no line `task: NAME` in it")
    return names[0]


def harness_columns(
    model: SharedModel, roles: Mapping[str, str], tasks: Mapping[str, Any], size: int, limit: int | None = None
) -> dict[str, dict[str, Column]]:
    """{system: {"task/metric": a value for each of its questions}}; roles: {system: its role}, tasks as loaded.

    The questions as the harness asks them, without a chat template; `size` at a time, the first `limit` of each task.
    Metrics that are no mean of a value for each question (a corpus BLEU, say) are left out.
    """
    from lm_eval.evaluator import evaluate

    from lora_rlhf.evaluation.harness_model import HarnessModel

    columns: dict[str, dict[str, Column]] = {}
    for name, role in roles.items():
        harness_model = HarnessModel(model, role, size)
        results = evaluate(harness_model, dict(tasks), limit=limit, bootstrap_iters=0, log_samples=True)
        columns[name] = {}
        for task, rows in results["samples"].items():
            ordered = sorted(rows, key=lambda row: row["doc_id"])
            for metric in sorted({metric for row in ordered for metric in row["metrics"]}):
                values = [row.get(metric) for row in ordered]
                if all(isinstance(value, bool | int | float) for value in values):
                    flags = set(values) <= {0, 1}
                    columns[name][f"{task}/{metric}"] = Column("share" if flags else "mean", values)
    return columns
