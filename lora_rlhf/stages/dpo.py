"""A policy from rankings or votes alone: DPO and its family, and KTO, with the losses of TRL's trainers.

The policy starts from the SFT model or an earlier policy, and is held to a reference: the frozen SFT adapter on the
same base, unless another is chosen.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from lora_rlhf.configs.stages import DPOConfig
from lora_rlhf.configs.values import check
from lora_rlhf.data.encode import EncodedRanking, encode_ranking, encode_vote
from lora_rlhf.data.labels import drop_duplicate_responses
from lora_rlhf.data.preferences import Rows, pair_rows, split_into_votes, vote_rows
from lora_rlhf.data.refusals import RefusedRows, pluralize
from lora_rlhf.data.schema import Ranking, Vote
from lora_rlhf.data.sources import Source
from lora_rlhf.data.spool import Spool, make_ranking_spool
from lora_rlhf.data.template import ensure_template
from lora_rlhf.model.forward import Sequences, apply_in_micro_batches, response_logprobs
from lora_rlhf.model.open import describe_base, move_base
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.runs.folder import ADAPTER, StageFolder, find_stage
from lora_rlhf.stages.auto_batch import AutoBatch
from lora_rlhf.stages.reward_report import accuracy_text, held_out_report, is_chance
from lora_rlhf.stages.reward_scores import failure_row, ranking_sequences
from lora_rlhf.stages.rows import Split, encode_source, length_limits, report_refusals, source_of, watched
from lora_rlhf.stages.samples import RANKINGS, TIMES
from lora_rlhf.stages.session import (
    INIT,
    cosine,
    epochs_of_batches,
    find_init,
    fixed_prompt_indices,
    log,
    make_policy,
    open_parent_base,
    require_context,
    seed_everything,
    warn_of_few_steps,
)
from lora_rlhf.stages.trainer import NotFinite, RoleOptimizer, Trainer
from lora_rlhf.stages.trl_loss import REFERENCE, ROLE, TRLLoss
from lora_rlhf.system import workers
from lora_rlhf.system.errors import UserError

EPS = 1e-8  # AdamW's in TRL: gradients here are smaller than PPO's, whose 1e-5 would slow them down
# TRL's figures, and their names here; those that are not listed say the same in another way
FIGURES = {
    **{"rewards/accuracies": "accuracy", "rewards/margins": "margin", "rewards/chosen": "chosen_reward"},
    **{"rewards/rejected": "rejected_reward", "entropy": "entropy", "kl": "kl"},
}


def train(config: DPOConfig, model: SharedModel | None = None) -> SharedModel:
    """Trains the `dpo` adapter on rankings or votes, and measures on held-out ones what it has come to prefer."""
    check(config)
    if workers.process_count() > 1:
        raise UserError("dpo runs in one process: start it without a launcher")
    with StageFolder.open(config, "dpo") as folder:
        sft = find_stage(config.sft or f"{config.run}/sft", "sft")
        move_base(config.model, sft.manifest["base"], str(sft.folder))
        init = find_init(config.init, sft)
        source: Source[Any] = source_of(config, config.rankings, "rankings")
        source.keeps_votes = config.method == "kto"
        source.require_first()
        model = open_parent_base(config, sft, model)
        require_context(model, config)
        ensure_template(model.tokenizer)
        training, validation = _encode(config, model, source)

        rng = seed_everything(config.seed)
        make_policy(model, ROLE, sft, init, config.reference)
        parents = {"sft": sft} | ({INIT: init} if init else {})
        folder.begin(describe_base(model), parents, {"rankings": config.rankings})
        order = epochs_of_batches(len(training), config.batch_size, config.epochs, rng)
        if config.method == "kto":  # one answer alone has no other to be compared with
            order = [batch for batch in order if len(batch) > 1]
        advice = "lower --batch_size, give --gradient_checkpointing, or lower --max_response_tokens"
        micro_batch = AutoBatch("micro_batch_size", config.micro_batch_size, advice)
        _train_on_rows(config, model, training, validation, folder, order, micro_batch)
        workers.from_main(lambda: model.save_role(ROLE, folder.path / ADAPTER))
        results = _count(config, training) | {"steps": len(order)} | _held_out(config, model, validation, micro_batch)
        folder.finish(results, f"{pluralize(len(order), 'step')}, {accuracy_text(results)}")
        warn_of_few_steps(len(order))
        if is_chance(results):
            log.warning(
                "this policy may have learned nothing: %s. Give it more rankings or epochs, a higher "
                "--learning_rate (%g) or a lower --beta (%g), or train a reward model to see whether the labels agree",
                *(accuracy_text(results), config.learning_rate, config.beta),
            )
    return model


def _encode(
    config: DPOConfig, model: SharedModel, source: Source[Any]
) -> tuple[Spool[EncodedRanking], Spool[EncodedRanking]]:
    """Rankings (for kto: votes) to train on and held out; a prompt is on one side only."""
    split = Split(config.validation_fraction, make_ranking_spool(), make_ranking_spool())
    refused, limits = RefusedRows(config.strict), length_limits(config)
    repeated, tied = RefusedRows(), 0

    def encode(row: Ranking | Vote, refused: RefusedRows) -> EncodedRanking | None:
        if isinstance(row, Vote):
            return encode_vote(model.tokenizer, row, limits, refused)
        distinct = drop_duplicate_responses(row, repeated)
        return None if distinct is None else encode_ranking(model.tokenizer, distinct, limits, refused)

    def keep(row: Ranking | Vote, encoded: EncodedRanking) -> None:
        nonlocal tied
        if len(encoded.ranks) > 1 and len(set(encoded.ranks)) == 1:
            tied += 1
            return
        for part in split_into_votes(encoded) if config.method == "kto" else [encoded]:
            split.add(row.prompt.opening, part)

    encode_source(source, encode, keep, refused, watched(source))
    refused.extend(repeated)
    report_refusals(config.rankings, refused)
    if tied:
        log.warning("%s: %d rankings are all ties and are left out", config.rankings, tied)
    split.require_some(config.rankings, source.read, refused, tied)
    split.require_both(config.rankings)
    if config.method == "kto":
        _require_both_labels(config, split.train)
    return split.train, split.validation


def _require_both_labels(config: DPOConfig, votes: Spool[EncodedRanking]) -> None:
    """UserError for votes that are all good or all bad; a warning where one side would drown the other."""
    good = sum(vote.ranks[0] == 1 for vote in votes)
    bad = len(votes) - good
    if not good or not bad:
        raise UserError(f"{config.rankings}: all {len(votes)} votes are {'good' if good else 'bad'}: kto needs both")
    ratio = good * config.desirable_weight / (bad * config.undesirable_weight)
    if not 1 <= ratio <= 4 / 3:  # KTO, arXiv 2402.01306, eq. 8
        log.warning(
            "%s: %d votes are good and %d bad; the KTO paper weighs them so that good ones count 1 to 4/3 times as "
            "much: --desirable_weight %.3g would",
            *(config.rankings, good, bad, bad * config.undesirable_weight / good),
        )


def _train_on_rows(
    config: DPOConfig,
    model: SharedModel,
    training: Spool[EncodedRanking],
    validation: Spool[EncodedRanking],
    folder: StageFolder,
    order: list[list[int]],
    micro_batch: AutoBatch,
) -> None:
    optimizer = RoleOptimizer(config, model, ROLE, config.learning_rate, micro_batch, EPS)
    loss = TRLLoss(config, model, folder.path, batch_groups(config, [training[0]])[0][1])
    fixed = [validation[index] for index in fixed_prompt_indices(validation, RANKINGS)]
    done, steps = 0, len(order)
    trainer = Trainer(config, model, folder, {ROLE: optimizer}, lambda: ({"step": done}, {}))
    with trainer.running():
        longest = _distinct_copies(training.longest, config.batch_size, model.config.vocab_size)
        optimizer.rehearse(partial(accumulate, config, model, loss, longest))
        if (checkpoint := trainer.resume()) is not None:
            done = checkpoint.state["step"]
        with tqdm(total=steps, initial=done, desc="dpo", unit="step") as bar:
            while done < steps:
                rate = optimizer.set_learning_rate(cosine(done, steps))
                rows = [training[index] for index in order[done]]
                try:
                    totals = optimizer.step(partial(accumulate, config, model, loss, rows))
                except NotFinite as error:
                    advice = f"Lower --learning_rate ({config.learning_rate:g}) and go on with --allow_changes"
                    failed = [failure_row(model, row) for row in rows]
                    raise trainer.write_failure(done + 1, error, failed, advice) from error
                optimizer.require_moved()
                done += 1
                figures = {f"dpo/{name}": value for name, value in totals.items()} | {"dpo/learning_rate": rate}
                if fixed and done % max(1, steps // TIMES) == 0:
                    report = held_out_report(*_judge(config, model, fixed, micro_batch))
                    figures |= {"samples/accuracy": report["accuracy"]["rate"]} if "accuracy" in report else {}
                trainer.log(done, figures)
                bar.update()
                bar.set_postfix(loss=f"{totals['loss']:.3f}", margin=f"{totals.get('margin', math.nan):.2f}")
                trainer.save_or_stop(done, steps)


def batch_groups(config: DPOConfig, rankings: Sequence[EncodedRanking]) -> list[tuple[float, Rows]]:
    """The rows of a batch with their share in its loss: all votes together; pairs together that weigh the same.

    TRL's losses are means over rows. A prompt counts once: with n pairs, each has 1/n of its weight.
    """
    if config.method == "kto":
        return [(1.0, vote_rows(rankings))]
    groups: dict[int, Rows] = {}
    for ranking in rankings:
        rows = pair_rows(ranking, config.pairs)
        groups.setdefault(len(rows), []).extend(rows)
    return [(len(rows) / count / len(rankings), rows) for count, rows in groups.items()]


def accumulate(
    config: DPOConfig, model: SharedModel, loss: TRLLoss, rankings: Sequence[EncodedRanking], size: int
) -> dict[str, float]:
    """Forward and backward over a batch; the loss is a mean over prompts (for kto: over votes)."""
    totals: dict[str, float] = {}
    for share, rows in batch_groups(config, rankings):
        group_loss, figures = loss(rows, size)
        model.backward(group_loss * share)
        named = {name: figures[theirs] for theirs, name in FIGURES.items() if theirs in figures}
        for name, value in {"loss": float(group_loss.detach()), **named}.items():
            totals[name] = totals.get(name, 0.0) + share * value
    return totals


def _distinct_copies(longest: EncodedRanking, count: int, vocab_size: int) -> list[EncodedRanking]:
    """Rankings as long as the longest one that differ in a token: equal rows would be read once."""
    return [replace(longest, prompt_ids=[index % vocab_size, *longest.prompt_ids[1:]]) for index in range(count)]


def _count(config: DPOConfig, training: Spool[EncodedRanking]) -> dict[str, int]:
    if config.method == "kto":
        return {"votes": len(training), "good_votes": sum(vote.ranks[0] == 1 for vote in training)}
    return {"prompts": len(training), "pairs": sum(len(pair_rows(row, config.pairs)) for row in training)}


def _held_out(
    config: DPOConfig, model: SharedModel, validation: Spool[EncodedRanking], batch: AutoBatch
) -> dict[str, Any]:
    return dict(held_out_report(*_judge(config, model, validation, batch)))


@torch.no_grad()
def _judge(
    config: DPOConfig, model: SharedModel, rankings: Sequence[EncodedRanking], batch: AutoBatch
) -> tuple[list[EncodedRanking], list[Tensor]]:
    """Held-out rankings, and each response's implicit reward, beta * log(policy / reference): (K,) a ranking.

    Votes are put side by side: the first good one with the first bad one, and so on.
    """
    if config.method == "kto":
        good, bad = ([vote for vote in rankings if vote.ranks[0] == rank] for rank in (1, 2))
        votes = [list(pair) for pair in zip(good, bad, strict=False)]
    else:
        votes = [[ranking] for ranking in rankings]
    rows = [ranking for group in votes for ranking in group]
    logprobs = {}
    for role in (ROLE, REFERENCE):
        with model.role(role):
            progress = tqdm(rows, desc=f"held-out, {role}", unit="row", disable=len(rows) <= RANKINGS)
            logprobs[role] = [batch.run(partial(_sum_logprobs, model, row), "scoring").cpu() for row in progress]
    rewards = [
        config.beta * (policy - reference)
        for policy, reference in zip(logprobs[ROLE], logprobs[REFERENCE], strict=True)
    ]
    if config.method == "dpo":
        return rows, rewards
    together = [EncodedRanking([], [ids for vote in group for ids in vote.response_ids], [1, 2]) for group in votes]
    return together, [torch.cat(pair) for pair in zip(rewards[::2], rewards[1::2], strict=True)]


def _sum_logprobs(model: SharedModel, ranking: EncodedRanking, size: int) -> Tensor:
    """The active role's log-probability of each response: (K,)."""

    def total(part: Sequences) -> Tensor:
        return response_logprobs(model, part, needs_entropy=False)[0].sum(dim=1)

    return apply_in_micro_batches(total, ranking_sequences(model, [ranking]), size)
