"""Stage 2, the reward model: K-wise rankings on the `reward` adapter and its scalar head (InstructGPT, section 3.5)."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch

from lora_rlhf.algo.losses import listwise_loss, ranking_loss, ranking_pairs
from lora_rlhf.configs.stages import RewardConfig
from lora_rlhf.configs.values import check, read_yaml
from lora_rlhf.data.encode import EncodedExample, EncodedRanking, encode_demonstration, encode_ranking
from lora_rlhf.data.labels import Agreement, AgreementCounter, drop_duplicate_responses, ranking_agreement
from lora_rlhf.data.refusals import RefusedRows, pluralize
from lora_rlhf.data.schema import Demonstration, Ranking
from lora_rlhf.data.sources import Source
from lora_rlhf.data.spool import Spool, make_example_spool, make_ranking_spool
from lora_rlhf.data.template import ensure_template
from lora_rlhf.model.forward import response_scores
from lora_rlhf.model.open import describe_base, move_base
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.runs.folder import ADAPTER, CONFIG, Parent, StageFolder, data_hash, find_data, find_stage
from lora_rlhf.stages.auto_batch import AutoBatch
from lora_rlhf.stages.reward_loop import Lesson, train_rows
from lora_rlhf.stages.reward_report import accuracy_text, chance_fault, held_out_report
from lora_rlhf.stages.reward_scores import (
    calibrate,
    failure_row,
    ranking_sequences,
    require_same_after_reload,
    score_rankings,
)
from lora_rlhf.stages.reward_steps import train_on_steps
from lora_rlhf.stages.rows import Split, encode_source, length_limits, report_refusals, source_of, watched
from lora_rlhf.stages.samples import RANKINGS, ranking_figures
from lora_rlhf.stages.session import (
    epochs_of_batches,
    fixed_prompt_indices,
    load_parent_role,
    log,
    open_parent_base,
    require_context,
    seed_everything,
    warn_of_few_steps,
)
from lora_rlhf.stages.trainer import RoleOptimizer
from lora_rlhf.system import workers
from lora_rlhf.system.errors import UserError


def train(config: RewardConfig, model: SharedModel | None = None) -> SharedModel:
    """Trains the `reward` adapter and head on rankings, calibrates them on the demonstrations and measures them.

    With `steps`, on labels of steps instead (`reward_steps.py`).
    """
    check(config)
    with StageFolder.open(config, "reward") as folder:
        sft = find_stage(config.sft or f"{config.run}/sft", "sft")
        move_base(config.model, sft.manifest["base"], str(sft.folder))
        if config.rankings is None:
            return train_on_steps(config, folder, sft, model)
        rankings: Source[Ranking] = source_of(config, config.rankings, "rankings")
        demonstrations = _open_demonstrations(config, sft)
        several: Source[Ranking] | None = None
        if config.agreement is not None:
            several = source_of(config, config.agreement, "rankings", strict=False)
        for source in (rankings, demonstrations, several):
            if source is not None:
                source.require_first()
        model = open_parent_base(config, sft, model)
        require_context(model, config)
        ensure_template(model.tokenizer)
        training, validation, label_agreement = _encode_rankings(config, model, rankings)
        if several is not None:
            label_agreement = ranking_agreement(several)
        examples = _encode_demonstrations(config, model, demonstrations)

        rng = seed_everything(config.seed)
        data = {"rankings": config.rankings, "demonstrations": demonstrations.name, "agreement": config.agreement}
        load_parent_role(model, "sft", sft)
        model.copy_role("sft", "reward", head="new")
        folder.begin(describe_base(model), {"sft": sft}, data)
        micro_batch = AutoBatch.for_training(config)
        order = epochs_of_batches(len(training), config.batch_size, config.epochs, rng)
        fixed = [validation[index] for index in fixed_prompt_indices(validation, RANKINGS)]
        train_rows(config, model, training, folder, order, micro_batch, _lesson(config, model, fixed, micro_batch))
        offset, sd = calibrate(config, model, examples, micro_batch)
        workers.from_main(lambda: model.save_role("reward", folder.path / ADAPTER))
        scores = score_rankings(model, validation, micro_batch)
        few = list(itertools.islice(validation, 8))
        require_same_after_reload(model, folder, lambda: score_rankings(model, few, micro_batch), micro_batch)
        results = {
            "prompts": len(training),
            "pairs": sum(_num_pairs(ranking) for ranking in training),
            "steps": len(order),
            "offset": offset,
            "scale_divided": sd,
            "label_agreement": label_agreement.rate,
            "label_agreement_pairs": label_agreement.num_pairs,
            **held_out_report(validation, scores),
        }
        folder.finish(results, f"{pluralize(len(order), 'step')}, {accuracy_text(results)}")
        warn_of_few_steps(len(order))
        if fault := chance_fault(results):
            log.warning("%s; it has too few or too noisy rankings to learn from, and ppo asks before it uses it", fault)
    return model


def _open_demonstrations(config: RewardConfig, sft: Parent) -> Source[Demonstration]:
    """The demonstrations that scores are centred on: the given file, or the one that SFT was trained on."""
    if config.demonstrations is not None:
        return Source(config.demonstrations, "demonstrations")
    record = sft.manifest["data"].get("demonstrations", {"path": "", "sha256": None})
    name = find_data(record, sft.run)
    if data_hash(name) != record["sha256"]:  # a manifest may be anybody's: it opens nothing that its writer never saw
        raise UserError(
            f"{sft.folder}: {name!r} is not the file of demonstrations that this stage was trained on, or has changed "
            "since; name one with --demonstrations"
        )
    settings = read_yaml(sft.folder / CONFIG)
    return Source(name, "demonstrations", settings.get("format"), columns=settings.get("columns"))


def _encode_rankings(
    config: RewardConfig, model: SharedModel, rankings: Source[Ranking]
) -> tuple[Spool[EncodedRanking], Spool[EncodedRanking], Agreement]:
    """Training and held-out rankings, a prompt on one side only; and how far the labels of all of them agree."""
    split = Split(config.validation_fraction, make_ranking_spool(), make_ranking_spool())
    refused, limits = RefusedRows(config.strict), length_limits(config)
    repeated = RefusedRows()
    counter, tied = AgreementCounter(), 0

    def encode(ranking: Ranking, refused: RefusedRows) -> EncodedRanking | None:
        distinct = drop_duplicate_responses(ranking, repeated)
        if distinct is None:
            return None
        counter.add(distinct)
        return encode_ranking(model.tokenizer, distinct, limits, refused)

    def keep(ranking: Ranking, row: EncodedRanking) -> None:
        nonlocal tied
        if _num_pairs(row):
            split.add(ranking.prompt.opening, row)
        else:
            tied += 1  # nothing to learn from, and nothing to be measured on

    encode_source(rankings, encode, keep, refused, watched(rankings))
    refused.extend(repeated)
    report_refusals(rankings.name, refused)
    if tied:
        log.warning("%s: %d rankings are all ties and are left out", rankings.name, tied)
    split.require_some(rankings.name, rankings.read, refused, tied)
    split.require_both(rankings.name)
    return split.train, split.validation, counter.result


def _encode_demonstrations(
    config: RewardConfig, model: SharedModel, demonstrations: Source[Demonstration]
) -> Spool[EncodedExample]:
    examples, refused = make_example_spool(), RefusedRows()
    encode_source(
        demonstrations,
        lambda row, refused: encode_demonstration(model.tokenizer, row, length_limits(config), refused),
        lambda _row, example: examples.append(example),
        refused,
        watched(demonstrations),
    )
    if not examples:
        raise UserError(
            f"{demonstrations.name}: none of its demonstrations fits these limits, so scores cannot be centred\n"
            f"{refused.summary()}"
        )
    return examples


def _num_pairs(ranking: EncodedRanking) -> int:
    """Pairs of responses that are not tied."""
    return len(ranking_pairs(torch.tensor(ranking.ranks))[0])


def _lesson(config: RewardConfig, model: SharedModel, fixed: list[EncodedRanking], batch: AutoBatch) -> Lesson[Any]:
    """How the role learns from rankings; figures are of the `fixed` ones."""
    return Lesson(
        accumulate=lambda rankings, size: accumulate(model, rankings, config.loss, size),
        metrics=_metrics,
        num_responses=lambda ranking: len(ranking.ranks),
        failure_row=lambda ranking: failure_row(model, ranking),
        figures=(lambda: ranking_figures(model, fixed, batch)) if fixed else None,
    )


def update(
    model: SharedModel, rankings: list[EncodedRanking], optimizer: RoleOptimizer, config: RewardConfig
) -> dict[str, float]:
    """One optimizer step on a batch of rankings: eq. 1, averaged over prompts."""
    return _metrics(optimizer.step(lambda size: accumulate(model, rankings, config.loss, size)))


def _metrics(totals: dict[str, float]) -> dict[str, float]:
    pairs = max(totals["pairs"], 1.0)
    return {
        "reward/loss": totals["loss"],
        "reward/accuracy": totals["correct"] / pairs,
        "reward/margin": totals["margin"] / pairs,
        "reward/grad_norm": totals["grad_norm"],
    }


def accumulate(model: SharedModel, rankings: Sequence[EncodedRanking], loss: str, size: int) -> dict[str, float]:
    """Forward and backward over this process's share of a batch, in micro-batches of at most `size` responses.

    All pairs of a prompt stand in one forward pass of its K responses. Micro-batches hold whole rankings and add up to
    the gradient of the whole batch. A ranking of more than `size` responses is read twice: once for its scores, from
    which the gradient of each is known, and once, in parts, to pass that gradient on.
    """
    totals = dict.fromkeys(("loss", "pairs", "correct", "margin"), 0.0)
    for group in _split_into_micro_batches(workers.share_of_process(rankings), size):
        sequences, counts = ranking_sequences(model, group), [len(ranking.ranks) for ranking in group]
        parts = [sequences.index(slice(start, start + size)) for start in range(0, len(sequences), size)]
        with torch.set_grad_enabled(len(parts) == 1):
            read = torch.cat([response_scores(model, part) for part in parts])
        scores = read if len(parts) == 1 else read.requires_grad_()
        part_loss = torch.zeros((), device=scores.device)
        for ranking, its_scores in zip(group, scores.split(counts), strict=True):
            ranks = torch.tensor(ranking.ranks, device=scores.device)
            pairwise = ranking_loss(its_scores, ranks)
            part_loss = part_loss + (pairwise.loss if loss == "pairwise" else listwise_loss(its_scores, ranks))
            totals["pairs"] += pairwise.num_pairs
            totals["correct"] += pairwise.num_correct
            totals["margin"] += pairwise.sum_of_leads
        totals["loss"] += float(part_loss.detach()) / len(rankings)
        if len(parts) == 1:
            model.backward(part_loss / len(rankings))
            continue
        (gradients,) = torch.autograd.grad(part_loss / len(rankings), scores)
        for part, gradient in zip(parts, gradients.split(size), strict=True):
            model.backward(response_scores(model, part), gradient)
    return totals


def _split_into_micro_batches(rankings: list[EncodedRanking], size: int) -> list[list[EncodedRanking]]:
    """Groups rankings of similar length, at most `size` responses a group; a ranking is never split."""
    groups: list[list[EncodedRanking]] = []
    num_responses = size  # of the last group
    for ranking in sorted(rankings, key=_longest_length, reverse=True):
        if num_responses + len(ranking.ranks) > size:
            groups.append([])
            num_responses = 0
        groups[-1].append(ranking)
        num_responses += len(ranking.ranks)
    return groups


def _longest_length(ranking: EncodedRanking) -> int:
    return len(ranking.prompt_ids) + max(map(len, ranking.response_ids))
