"""A process reward: labels of steps on the `reward` adapter and its head, read at the token that ends each step.

The head's output is the logit of "this step is good" (Lightman et al., arXiv 2305.20050, section 2.6; Wang et al.,
arXiv 2312.08935, section 3.2). An answer of which only the last step is labelled trains an outcome reward.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lora_rlhf.algo.losses import step_loss
from lora_rlhf.configs.stages import RewardConfig
from lora_rlhf.data.batches import response_batch
from lora_rlhf.data.encode import EncodedSteps, encode_steps
from lora_rlhf.data.refusals import RefusedRows, pluralize
from lora_rlhf.data.schema import StepLabels
from lora_rlhf.data.sources import Source
from lora_rlhf.data.spool import Spool, make_step_spool
from lora_rlhf.data.template import ensure_template, pad_id
from lora_rlhf.model.forward import Sequences, token_scores
from lora_rlhf.model.open import describe_base
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.runs.folder import ADAPTER, Parent, StageFolder
from lora_rlhf.stages.auto_batch import AutoBatch
from lora_rlhf.stages.reward_loop import Lesson, train_rows
from lora_rlhf.stages.reward_report import accuracy_text, chance_fault, reliability_table
from lora_rlhf.stages.reward_scores import require_same_after_reload
from lora_rlhf.stages.rows import Split, encode_source, length_limits, report_refusals, source_of, watched
from lora_rlhf.stages.samples import RANKINGS, Figures
from lora_rlhf.stages.scorer import score_tokens
from lora_rlhf.stages.session import (
    STEP_END,
    epochs_of_batches,
    fixed_prompt_indices,
    load_parent_role,
    log,
    open_parent_base,
    require_context,
    seed_everything,
    warn_of_few_steps,
)
from lora_rlhf.stats.steps import step_report
from lora_rlhf.system import workers
from lora_rlhf.system.errors import UserError


def train_on_steps(config: RewardConfig, folder: StageFolder, sft: Parent, model: SharedModel | None) -> SharedModel:
    """Trains the `reward` adapter and head on labels of steps, and measures them on held-out ones."""
    assert config.steps is not None
    source: Source[StepLabels] = source_of(config, config.steps, "steps")
    source.require_first()
    model = open_parent_base(config, sft, model)
    require_context(model, config)
    ensure_template(model.tokenizer)
    training, validation = _encode(config, model, source)
    rng = seed_everything(config.seed)
    load_parent_role(model, "sft", sft)
    model.copy_role("sft", "reward", head="new")
    folder.begin(describe_base(model), {"sft": sft}, {"steps": config.steps})
    micro_batch = AutoBatch.for_training(config)
    order = epochs_of_batches(len(training), config.batch_size, config.epochs, rng)
    fixed = [validation[index] for index in fixed_prompt_indices(validation, RANKINGS)]
    train_rows(config, model, training, folder, order, micro_batch, _lesson(model, fixed, micro_batch))
    workers.from_main(lambda: model.save_role("reward", folder.path / ADAPTER))
    few = fixed or [training[0]]
    require_same_after_reload(model, folder, lambda: _probabilities(model, few, micro_batch), micro_batch)
    results = {
        STEP_END: config.step_end,
        "offset": 0.0,
        "answers": len(training),
        "labelled_steps": sum(len(row.judged) for row in training),
        "steps": len(order),
        **_report(model, validation, micro_batch),
    }
    folder.finish(results, f"{pluralize(len(order), 'step')}, {accuracy_text(results)}")
    if results["held_out_steps"]:
        log.info("held-out steps by the stated probability of the likelier label:\n%s", reliability_table(results))
    warn_of_few_steps(len(order))
    if fault := chance_fault(results):
        log.warning("%s; it has too few or too noisy labels to learn from, and ppo asks before it uses it", fault)
    return model


def _encode(
    config: RewardConfig, model: SharedModel, source: Source[StepLabels]
) -> tuple[Spool[EncodedSteps], Spool[EncodedSteps]]:
    """Training and held-out answers, a prompt on one side only. UserError where all labels are the same."""
    split = Split(config.validation_fraction, make_step_spool(), make_step_spool())
    refused, limits, labels = RefusedRows(config.strict), length_limits(config), set[bool]()

    def keep(row: StepLabels, encoded: EncodedSteps) -> None:
        split.add(row.prompt.opening, encoded)
        labels.update(encoded.judged.values())

    encode_source(
        source,
        lambda row, refused: encode_steps(model.tokenizer, row, config.step_end, limits, refused),
        keep,
        refused,
        watched(source),
    )
    report_refusals(source.name, refused)
    split.require_some(source.name, source.read, refused)
    split.require_both(source.name)
    if len(labels) == 1:
        raise UserError(f"{source.name}: all labelled steps are {'good' if labels.pop() else 'bad'}: both are needed")
    return split.train, split.validation


def _lesson(model: SharedModel, fixed: list[EncodedSteps], batch: AutoBatch) -> Lesson[EncodedSteps]:
    """How the role learns from labels of steps; figures are of the `fixed` answers."""

    def figures() -> Figures:
        report = _report(model, fixed, batch)
        return {"samples/accuracy": report["step_accuracy"]["rate"], "samples/ece": report["ece"]}

    decode = model.tokenizer.decode
    return Lesson(
        accumulate=lambda rows, size: accumulate(model, rows, size),
        metrics=lambda totals: {
            "reward/loss": totals["loss"],
            "reward/accuracy": totals["correct"] / max(1.0, totals["steps"]),
            "reward/grad_norm": totals["grad_norm"],
        },
        num_responses=lambda row: 1,
        failure_row=lambda row: {"prompt": decode(row.prompt_ids), "response": decode(row.response_ids), **vars(row)},
        figures=figures if fixed else None,
    )


def _sequences(model: SharedModel, rows: Sequence[EncodedSteps]) -> tuple[Sequences, Tensor]:
    """The answers, and True at each token (B, R) that ends a labelled step; on the model's device."""
    ids = [row.prompt_ids for row in rows], [row.response_ids for row in rows]
    sequences = Sequences(*response_batch(*ids, pad_id(model.tokenizer))).to(model.device)
    places = torch.zeros_like(sequences.response_mask)
    for index, row in enumerate(rows):
        places[index, list(row.judged)] = True
    return sequences, places


def accumulate(model: SharedModel, rows: Sequence[EncodedSteps], size: int) -> dict[str, float]:
    """Forward and backward over this process's share of a batch: the loss's mean over all its labelled steps."""
    num_steps = sum(len(row.judged) for row in rows)
    share = sorted(workers.share_of_process(rows), key=lambda row: -len(row.prompt_ids) - len(row.response_ids))
    totals = dict.fromkeys(("loss", "correct", "steps"), 0.0)
    for start in range(0, len(share), size):
        part = share[start : start + size]
        sequences, places = _sequences(model, part)
        logits = token_scores(model, sequences, places)[places]
        labels = torch.tensor([label for row in part for label in row.judged.values()], device=logits.device)
        loss = step_loss(logits, labels, num_steps)
        model.backward(loss)
        totals["loss"] += float(loss.detach())
        totals["correct"] += float(((logits > 0) == labels).sum())
        totals["steps"] += len(labels)
    return totals


@torch.no_grad()
def _probabilities(model: SharedModel, rows: Sequence[EncodedSteps], batch: AutoBatch) -> list[Tensor]:
    """The probability that each labelled step is good, (steps,) of each answer, on the CPU."""
    indices, found = workers.share_of_process(range(len(rows))), list[Tensor]()
    with model.role("reward"):
        for start in range(0, len(indices), batch.size):
            part = [rows[index] for index in indices[start : start + batch.size]]
            sequences, places = _sequences(model, part)
            scores = score_tokens(model, sequences, places, batch).sigmoid().cpu()
            found += [scores[row, list(one.judged)] for row, one in enumerate(part)]
    return workers.gather(found)


def _report(model: SharedModel, rows: Sequence[EncodedSteps], batch: AutoBatch) -> dict[str, Any]:
    labels = [{number: label for number, label in enumerate(row.labels) if label is not None} for row in rows]
    return step_report(labels, [found.tolist() for found in _probabilities(model, rows, batch)])
