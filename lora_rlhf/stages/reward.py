"""Stage 2, the reward model: K-wise rankings on the `reward` adapter and its scalar head (InstructGPT, section 3.5)."""

import itertools
import math
import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from lora_rlhf.algo.losses import listwise_loss, ranking_loss
from lora_rlhf.config import RewardConfig
from lora_rlhf.data.batches import pad_left, pad_right, ranking_batch
from lora_rlhf.data.encode import EncodedExample, EncodedRanking, encode_demonstration, encode_ranking
from lora_rlhf.data.labels import Agreement, AgreementCounter, agreement, distinct_responses
from lora_rlhf.data.refusals import RefusedRows
from lora_rlhf.data.schema import Demonstration, Ranking
from lora_rlhf.data.sources import Source
from lora_rlhf.data.spool import Spool, spool_examples, spool_rankings
from lora_rlhf.data.template import ensure_template, pad_id
from lora_rlhf.errors import UserError
from lora_rlhf.model.adapters import read_adapter
from lora_rlhf.model.forward import Sequences, response_scores
from lora_rlhf.model.open import describe_base, require_same_base
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.run import ADAPTER, CONFIG, Parent, StageFolder, find_stage
from lora_rlhf.settings import check, read_yaml
from lora_rlhf.stages.reward_report import held_out_report
from lora_rlhf.stages.rows import Split, limits_of, report_refusals, watched
from lora_rlhf.stages.session import (
    FLOOR,
    adamw,
    batches,
    bring,
    log,
    open_parent_base,
    require_context,
    role_parameters,
    seed_everything,
    set_learning_rate,
)

SMALLEST_SCALE = 0.05  # a sd below this is noise: dividing by it would make a loud reward of it


def train(config: RewardConfig, model: SharedModel | None = None) -> SharedModel:
    """Trains the `reward` adapter and head on rankings, calibrates them on the demonstrations and measures them."""
    check(config)
    folder = StageFolder.check_free(config, "reward")
    sft = find_stage(config.sft or f"{config.run}/sft", "sft")
    require_same_base(config.model, sft.manifest["base"], str(sft.folder))
    rankings: Source[Ranking] = Source(config.rankings, "rankings", config.format, config.strict)
    demonstrations = _demonstrations(config, sft)
    for source in (rankings, demonstrations):
        next(iter(source))  # a file that cannot be used is said before the model is loaded
    several: Source[Ranking] | None = None
    if config.agreement is not None:
        several = Source(config.agreement, "rankings", config.format)
        next(iter(several))
    model = open_parent_base(config, sft, model)
    require_context(model, config)
    ensure_template(model.tokenizer)
    training, validation, label_agreement = _encode(config, model, rankings)
    if several is not None:
        label_agreement = agreement(several)
    examples = _encode_demonstrations(config, model, demonstrations)

    rng = seed_everything(config.seed)
    data = {"rankings": config.rankings, "demonstrations": demonstrations.name, "agreement": config.agreement}
    bring(model, "sft", sft)
    model.copy_role("sft", "reward", head="new")
    folder.begin(describe_base(model), {"sft": sft}, data)
    _optimize(config, model, training, folder, rng)
    offset, sd = _calibrate(config, model, examples)
    model.save_role("reward", folder.path / ADAPTER)
    scores = score_rankings(model, validation, config.micro_batch_size, offset)
    _require_same_after_reload(config, model, folder, validation, scores, offset)
    report = held_out_report(validation, scores)
    folder.finish(
        {
            "prompts": len(training),
            "pairs": sum(_num_pairs(ranking) for ranking in training),
            "offset": offset,
            "scale_divided": sd,
            "label_agreement": label_agreement.rate,
            "label_agreement_pairs": label_agreement.num_pairs,
            **report,
        }
    )
    return model


def _demonstrations(config: RewardConfig, sft: Parent) -> Source[Demonstration]:
    """What the scores are centred on: a file of its own, or what the SFT stage read, as it read it."""
    if config.demonstrations is not None:
        return Source(config.demonstrations, "demonstrations")
    name = sft.manifest["data"]["demonstrations"]["path"]
    return Source(name, "demonstrations", read_yaml(sft.folder / CONFIG).get("format"))


def _encode(
    config: RewardConfig, model: SharedModel, rankings: Source[Ranking]
) -> tuple[Spool[EncodedRanking], Spool[EncodedRanking], Agreement]:
    """Training and held-out rankings, all of a prompt on the same side; and how far the labels of them all agree."""
    split = Split(config.validation_fraction, spool_rankings(), spool_rankings())
    refused, limits = RefusedRows(config.strict), limits_of(config)
    repeated = RefusedRows()
    counter, tied = AgreementCounter(), 0
    for ranking in watched(rankings):
        distinct = distinct_responses(ranking, repeated)
        if distinct is None:
            continue
        counter.add(distinct)
        row = encode_ranking(model.tokenizer, distinct, limits, refused)
        if row is None:
            continue
        if _num_pairs(row):
            split.add(ranking.prompt.opening, row)
        else:
            tied += 1  # nothing to learn from, and nothing to be measured on
    for other in (rankings.refused, repeated):
        refused.extend(other)
    report_refusals(config.rankings, refused)
    if tied:
        log.warning("%s: %d rankings are all ties and are left out", config.rankings, tied)
    if not split.train:
        raise UserError(
            f"{config.rankings}: none of its {rankings.read} rankings is left to train on: {len(split.validation)} are "
            f"held out by validation_fraction {config.validation_fraction:g}, {tied} are all tied, the others were "
            f"refused\n{refused.summary()}"
        )
    split.require_both(config.rankings)
    return split.train, split.validation, counter.result


def _encode_demonstrations(
    config: RewardConfig, model: SharedModel, demonstrations: Source[Demonstration]
) -> Spool[EncodedExample]:
    examples, refused = spool_examples(), RefusedRows()
    for demonstration in watched(demonstrations):
        example = encode_demonstration(model.tokenizer, demonstration, limits_of(config), refused)
        if example is not None:
            examples.append(example)
    if not examples:
        raise UserError(
            f"{demonstrations.name}: none of its demonstrations fits these limits, so scores cannot be centred\n"
            f"{refused.summary()}"
        )
    return examples


def _num_pairs(ranking: EncodedRanking) -> int:
    ranks = ranking.ranks
    return sum(one < other for one in ranks for other in ranks)


def _optimize(
    config: RewardConfig,
    model: SharedModel,
    training: Sequence[EncodedRanking],
    folder: StageFolder,
    rng: random.Random,
) -> None:
    optimizer = adamw(role_parameters(model, "reward"), config.learning_rate)
    steps = config.epochs * math.ceil(len(training) / config.batch_size)
    order = [batch for _ in range(config.epochs) for batch in batches(len(training), config.batch_size, rng)]
    progress = tqdm(order, desc="reward", unit="step")
    for step, batch in enumerate(progress):
        set_learning_rate(optimizer, config.learning_rate * _cosine(step, steps))
        metrics = update(model, [training[index] for index in batch], optimizer, config)
        folder.log(step + 1, metrics)
        progress.set_postfix(loss=f"{metrics['reward/loss']:.3f}", accuracy=f"{metrics['reward/accuracy']:.2f}")


def update(
    model: SharedModel, rankings: list[EncodedRanking], optimizer: torch.optim.Optimizer, config: RewardConfig
) -> dict[str, float]:
    """One optimizer step on a batch of rankings: eq. 1, averaged over prompts.

    All pairs of a prompt stand in one forward pass of its K responses. Micro-batches hold whole rankings and add up to
    the gradient of the whole batch.
    """
    optimizer.zero_grad()
    loss, pairs, correct, margin = 0.0, 0, 0, 0.0
    with model.role("reward", training=True):
        for group in _micro_batches(rankings, config.micro_batch_size):
            scores = response_scores(model, _sequences(model, group))
            part = torch.zeros((), device=scores.device)
            for ranking, own in zip(group, scores.split([len(r.ranks) for r in group]), strict=True):
                ranks = torch.tensor(ranking.ranks, device=own.device)
                pairwise = ranking_loss(own, ranks)
                part = part + (pairwise.loss if config.loss == "pairwise" else listwise_loss(own, ranks))
                pairs, correct = pairs + pairwise.num_pairs, correct + pairwise.num_correct
                margin += _margins(own.detach(), ranks)
            (part / len(rankings)).backward()
            loss += float(part.detach()) / len(rankings)
        model.check_gradients("reward")
        norm = torch.nn.utils.clip_grad_norm_(role_parameters(model, "reward"), config.max_grad_norm)
        optimizer.step()
    return {
        "reward/loss": loss,
        "reward/accuracy": correct / max(pairs, 1),
        "reward/margin": margin / max(pairs, 1),
        "reward/grad_norm": float(norm),
    }


def _margins(scores: Tensor, ranks: Tensor) -> float:
    """Sum over a ranking's pairs of winner's minus loser's score."""
    beats = ranks.unsqueeze(1) < ranks.unsqueeze(0)
    return float(((scores.unsqueeze(1) - scores.unsqueeze(0)) * beats).sum())


def _cosine(step: int, steps: int) -> float:
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * step / steps))


def _micro_batches(rankings: list[EncodedRanking], size: int) -> list[list[EncodedRanking]]:
    """Rankings of like length together, as many as hold at most `size` responses; one ranking is never divided."""
    groups: list[list[EncodedRanking]] = []
    held = size
    for ranking in sorted(rankings, key=_length, reverse=True):
        if held + len(ranking.ranks) > size:
            groups.append([])
            held = 0
        groups[-1].append(ranking)
        held += len(ranking.ranks)
    return groups


def _length(ranking: EncodedRanking) -> int:
    return len(ranking.prompt_ids) + max(map(len, ranking.response_ids))


def _sequences(model: SharedModel, rankings: Sequence[EncodedRanking]) -> Sequences:
    return Sequences(*ranking_batch(rankings, pad_id(model.tokenizer))).to(model.device)


@torch.no_grad()
def score_rankings(model: SharedModel, rankings: Sequence[EncodedRanking], size: int, offset: float) -> list[Tensor]:
    """Each ranking's scores (K,), in the given order, on the CPU."""
    with model.role("reward"):
        return [
            response_scores(model, _sequences(model, [ranking])).cpu() - offset
            for ranking in tqdm(rankings, desc="held-out rankings", unit="prompt", disable=len(rankings) < size)
        ]


def _example_sequences(model: SharedModel, examples: Sequence[EncodedExample]) -> Sequences:
    pad = pad_id(model.tokenizer)
    prompts, responses = [row.prompt_ids for row in examples], [row.response_ids for row in examples]
    return Sequences(*pad_left(prompts, pad), *pad_right(responses, pad)).to(model.device)


@torch.no_grad()
def _calibrate(config: RewardConfig, model: SharedModel, examples: Sequence[EncodedExample]) -> tuple[float, float]:
    """Makes the demonstrations score mean 0 and sd 1 (InstructGPT, section 3.5: "a bias ... mean score of 0").

    The scale goes into the head, so that the saved model carries it and a value function copied from it starts in
    units of the score. The offset, which a head without a bias cannot hold, is returned, with the sd divided by.
    """
    lengths = [len(example.prompt_ids) + len(example.response_ids) for example in examples]
    longest_first = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    with model.role("reward"):
        parts = []
        for start in range(0, len(lengths), config.micro_batch_size):
            part = [examples[place] for place in longest_first[start : start + config.micro_batch_size]]
            parts.append(response_scores(model, _example_sequences(model, part)).cpu())
    scores = torch.cat(parts).double()
    sd = float(scores.std()) if len(scores) > 1 else 1.0
    if config.scale is not None:
        sd = config.scale
    elif sd < SMALLEST_SCALE:
        log.warning("the demonstrations' scores hardly differ (sd %.3g): scaling by %g instead", sd, SMALLEST_SCALE)
        sd = SMALLEST_SCALE
    with model.role("reward", training=True):
        model.head.weight.data.div_(sd)
    return float(scores.mean()) / sd, sd


def _require_same_after_reload(
    config: RewardConfig,
    model: SharedModel,
    folder: StageFolder,
    rankings: Sequence[EncodedRanking],
    scores: list[Tensor],
    offset: float,
) -> None:
    """What was saved scores exactly like what was trained: a head lost on disk would show here, not weeks later."""
    model.load_adapter_state("reward", read_adapter(folder.path / ADAPTER)[1])
    again: Any = score_rankings(model, list(itertools.islice(rankings, 8)), config.micro_batch_size, offset)
    if any(not torch.equal(one, other) for one, other in zip(scores, again, strict=False)):
        raise RuntimeError(f"{folder.path / ADAPTER}: the saved reward model scores differently from the trained one")
