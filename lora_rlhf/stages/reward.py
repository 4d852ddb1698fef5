"""Stage 2, the reward model: K-wise rankings on the `reward` adapter and its scalar head (InstructGPT, section 3.5)."""

from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from lora_rlhf.algo.losses import listwise_loss, ranking_loss
from lora_rlhf.configs.stages import RewardConfig
from lora_rlhf.configs.values import check, read_yaml
from lora_rlhf.data.encode import EncodedExample, EncodedRanking, encode_demonstration, encode_ranking
from lora_rlhf.data.labels import Agreement, AgreementCounter, agreement, distinct_responses
from lora_rlhf.data.refusals import RefusedRows
from lora_rlhf.data.schema import Demonstration, Ranking
from lora_rlhf.data.sources import Source
from lora_rlhf.data.spool import Spool, spool_examples, spool_rankings
from lora_rlhf.data.template import ensure_template
from lora_rlhf.model.forward import response_scores
from lora_rlhf.model.open import describe_base, require_same_base
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.runs.folder import ADAPTER, CONFIG, Parent, StageFolder, data_hash, find_stage
from lora_rlhf.stages.fitting import Pieces
from lora_rlhf.stages.learning import NotFinite, RoleOptimizer
from lora_rlhf.stages.loop import TrainingLoop
from lora_rlhf.stages.reward_report import held_out_report
from lora_rlhf.stages.reward_scores import calibrate, ranking_sequences, require_same_after_reload, score_rankings
from lora_rlhf.stages.rows import Split, limits_of, report_refusals, watched
from lora_rlhf.stages.samples import RANKINGS, TIMES, of_reward
from lora_rlhf.stages.session import (
    bring,
    cosine,
    epochs_of_batches,
    log,
    open_parent_base,
    pick_fixed,
    require_context,
    seed_everything,
    training_pieces,
)
from lora_rlhf.system import workers
from lora_rlhf.system.errors import UserError


def train(config: RewardConfig, model: SharedModel | None = None) -> SharedModel:
    """Trains the `reward` adapter and head on rankings, calibrates them on the demonstrations and measures them."""
    check(config)
    with StageFolder.open(config, "reward") as folder:
        sft = find_stage(config.sft or f"{config.run}/sft", "sft")
        require_same_base(config.model, sft.manifest["base"], str(sft.folder))
        rankings: Source[Ranking] = Source(config.rankings, "rankings", config.format, config.strict)
        demonstrations = _demonstrations(config, sft)
        several: Source[Ranking] | None = None
        if config.agreement is not None:
            several = Source(config.agreement, "rankings", config.format)
        for source in (rankings, demonstrations, several):
            if source is not None:
                source.require_first()
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
        pieces = training_pieces(config)
        order = epochs_of_batches(len(training), config.batch_size, config.epochs, rng)
        fixed = [validation[place] for place in pick_fixed(validation, RANKINGS)]
        _optimize(config, model, training, fixed, folder, order, pieces)
        offset, sd = calibrate(config, model, examples, pieces)
        workers.from_main(lambda: model.save_role("reward", folder.path / ADAPTER))
        scores = score_rankings(model, validation, pieces, offset)
        require_same_after_reload(model, folder, validation, scores, offset, pieces)
        folder.finish(
            {
                "prompts": len(training),
                "pairs": sum(_num_pairs(ranking) for ranking in training),
                "offset": offset,
                "scale_divided": sd,
                "label_agreement": label_agreement.rate,
                "label_agreement_pairs": label_agreement.num_pairs,
                **held_out_report(validation, scores),
            }
        )
    return model


def _demonstrations(config: RewardConfig, sft: Parent) -> Source[Demonstration]:
    """What the scores are centred on: a file of its own, or what the SFT stage read, as it read it."""
    if config.demonstrations is not None:
        return Source(config.demonstrations, "demonstrations")
    record = sft.manifest["data"].get("demonstrations", {"path": "", "sha256": None})
    name = record["path"]
    if data_hash(name) != record["sha256"]:  # a manifest may be anybody's: it opens nothing that its writer never saw
        raise UserError(
            f"{sft.folder}: {name!r} is not the file of demonstrations that this stage was trained on, or has changed "
            "since; name one with --demonstrations"
        )
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
    training: Spool[EncodedRanking],
    fixed: list[EncodedRanking],
    folder: StageFolder,
    order: list[list[int]],
    pieces: Pieces,
) -> None:
    rate, most = config.learning_rate, config.max_grad_norm
    optimizer = RoleOptimizer(model, "reward", rate, most, pieces, optimizer=config.optimizer)
    done, steps = 0, len(order)
    loop = TrainingLoop(config, folder, model, [optimizer], lambda: ({"step": done}, {}), "step")
    with loop.running():
        longest = training.longest
        most = max(1, pieces.size // len(longest.ranks))
        optimizer.rehearse(lambda size: accumulate(model, [longest] * most * workers.count(), config.loss, size))
        if (found := loop.resume()) is not None:
            done = found.state["step"]
        with tqdm(total=steps, initial=done, desc="reward", unit="step") as bar:
            while done < steps:
                optimizer.set_learning_rate(config.learning_rate * cosine(done, steps))
                batch = [training[place] for place in order[done]]
                try:
                    metrics = update(model, batch, optimizer, config)
                except NotFinite as error:
                    advice = f"Lower --learning_rate ({config.learning_rate:g}) and go on with --allow_changes"
                    raise loop.broken(done + 1, error, [_shown(model, row) for row in batch], advice) from error
                done += 1
                if fixed and done % max(1, steps // TIMES) == 0:
                    metrics |= of_reward(model, fixed, pieces)
                loop.log(done, metrics)
                bar.update()
                bar.set_postfix(loss=f"{metrics['reward/loss']:.3f}", accuracy=f"{metrics['reward/accuracy']:.2f}")
                loop.boundary(done, steps)


def _shown(model: SharedModel, ranking: EncodedRanking) -> dict[str, Any]:
    decode = model.tokenizer.decode
    texts = {"prompt": decode(ranking.prompt_ids), "responses": [decode(ids) for ids in ranking.response_ids]}
    return {**texts, **vars(ranking)}


def update(
    model: SharedModel, rankings: list[EncodedRanking], optimizer: RoleOptimizer, config: RewardConfig
) -> dict[str, float]:
    """One optimizer step on a batch of rankings: eq. 1, averaged over prompts."""
    totals = optimizer.step(lambda size: accumulate(model, rankings, config.loss, size))
    pairs = max(totals["pairs"], 1.0)
    return {
        "reward/loss": totals["loss"],
        "reward/accuracy": totals["correct"] / pairs,
        "reward/margin": totals["margin"] / pairs,
        "reward/grad_norm": totals["grad_norm"],
    }


def accumulate(model: SharedModel, rankings: list[EncodedRanking], loss: str, size: int) -> dict[str, float]:
    """Forward and backward over this process's share of a batch, in micro-batches of at most `size` responses.

    All pairs of a prompt stand in one forward pass of its K responses. Micro-batches hold whole rankings and add up to
    the gradient of the whole batch. A ranking of more than `size` responses is read twice: once for its scores, from
    which the gradient of each is known, and once, in parts, to pass that gradient on.
    """
    totals = dict.fromkeys(("loss", "pairs", "correct", "margin"), 0.0)
    for group in _micro_batches(workers.share(rankings), size):
        sequences, counts = ranking_sequences(model, group), [len(ranking.ranks) for ranking in group]
        parts = [sequences.index(slice(start, start + size)) for start in range(0, len(sequences), size)]
        with torch.set_grad_enabled(len(parts) == 1):
            read = torch.cat([response_scores(model, part) for part in parts])
        scores = read if len(parts) == 1 else read.requires_grad_()
        part_loss = torch.zeros((), device=scores.device)
        for ranking, own in zip(group, scores.split(counts), strict=True):
            ranks = torch.tensor(ranking.ranks, device=own.device)
            pairwise = ranking_loss(own, ranks)
            part_loss = part_loss + (pairwise.loss if loss == "pairwise" else listwise_loss(own, ranks))
            totals["pairs"] += pairwise.num_pairs
            totals["correct"] += pairwise.num_correct
            totals["margin"] += _margins(own.detach(), ranks)
        (part_loss / len(rankings)).backward()
        totals["loss"] += float(part_loss.detach()) / len(rankings)
        if len(parts) > 1:
            assert scores.grad is not None
            for part, gradient in zip(parts, scores.grad.split(size), strict=True):
                response_scores(model, part).backward(gradient)
    return totals


def _margins(scores: Tensor, ranks: Tensor) -> float:
    """Sum over a ranking's pairs of winner's minus loser's score."""
    beats = ranks.unsqueeze(1) < ranks.unsqueeze(0)
    return float(((scores.unsqueeze(1) - scores.unsqueeze(0)) * beats).sum())


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
