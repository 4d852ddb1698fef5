"""The steps that train the reward role, whatever it learns from: rankings, or labels of steps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from tqdm import tqdm

from lora_rlhf.configs.stages import RewardConfig
from lora_rlhf.data.spool import Spool
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.runs.folder import StageFolder
from lora_rlhf.stages.auto_batch import AutoBatch
from lora_rlhf.stages.samples import TIMES, Figures
from lora_rlhf.stages.session import cosine
from lora_rlhf.stages.trainer import NotFinite, RoleOptimizer, Trainer
from lora_rlhf.system import workers

Row = TypeVar("Row")


@dataclass(frozen=True)
class Lesson(Generic[Row]):
    """How the role learns from its rows.

    accumulate(rows, size): forward and backward over this process's share, at most `size` responses at a time; returns
    sums. metrics: of these sums and `grad_norm`, what is logged. num_responses, failure_row: of a row. figures: of the
    same few held-out rows, a few times in training; None without any.
    """

    accumulate: Callable[[Sequence[Row], int], dict[str, float]]
    metrics: Callable[[dict[str, float]], Figures]
    num_responses: Callable[[Row], int]
    failure_row: Callable[[Row], dict[str, Any]]
    figures: Callable[[], Figures] | None


def train_rows(
    config: RewardConfig,
    model: SharedModel,
    training: Spool[Row],
    folder: StageFolder,
    order: list[list[int]],
    micro_batch: AutoBatch,
    lesson: Lesson[Row],
) -> None:
    """A step for each batch of `order`, with checkpoints; goes on where an earlier attempt ended."""
    optimizer = RoleOptimizer(config, model, "reward", config.learning_rate, micro_batch)
    done, steps = 0, len(order)
    trainer = Trainer(config, model, folder, {"reward": optimizer}, lambda: ({"step": done}, {}))
    with trainer.running():
        longest = training.longest
        count = max(1, micro_batch.size // lesson.num_responses(longest)) * workers.process_count()
        optimizer.rehearse(lambda size: lesson.accumulate([longest] * count, size))
        if (checkpoint := trainer.resume()) is not None:
            done = checkpoint.state["step"]
        with tqdm(total=steps, initial=done, desc="reward", unit="step") as bar:
            while done < steps:
                optimizer.set_learning_rate(cosine(done, steps))
                rows = [training[index] for index in order[done]]
                try:
                    metrics = lesson.metrics(optimizer.step(lambda size: lesson.accumulate(rows, size)))  # noqa: B023
                except NotFinite as error:
                    advice = f"Lower --learning_rate ({config.learning_rate:g}) and go on with --allow_changes"
                    raise trainer.write_failure(
                        done + 1, error, [lesson.failure_row(row) for row in rows], advice
                    ) from error
                optimizer.require_moved()
                done += 1
                if lesson.figures is not None and done % max(1, steps // TIMES) == 0:
                    metrics |= lesson.figures()
                trainer.log(done, metrics)
                bar.update()
                bar.set_postfix(loss=f"{metrics['reward/loss']:.3f}", accuracy=f"{metrics['reward/accuracy']:.2f}")
                trainer.save_or_stop(done, steps)
