"""The reward role's scores of rankings, their calibration on demonstrations, and a check of the saved adapter."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from lora_rlhf.configs.stages import RewardConfig
from lora_rlhf.data.batches import ranking_batch, response_batch
from lora_rlhf.data.encode import EncodedExample, EncodedRanking
from lora_rlhf.data.template import pad_id
from lora_rlhf.model.adapters import read_adapter
from lora_rlhf.model.forward import Sequences
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.runs.folder import ADAPTER, StageFolder
from lora_rlhf.stages.auto_batch import AutoBatch
from lora_rlhf.stages.scorer import score_in_batches
from lora_rlhf.system import workers

log = logging.getLogger("lora_rlhf")

SMALLEST_SCALE = 0.05  # a sd below this is noise: dividing by it would make a loud reward of it


def ranking_sequences(model: SharedModel, rankings: Sequence[EncodedRanking]) -> Sequences:
    """All responses of all rankings, side by side, on the model's device."""
    return Sequences(*ranking_batch(rankings, pad_id(model.tokenizer))).to(model.device)


def failure_row(model: SharedModel, ranking: EncodedRanking) -> dict[str, Any]:
    """A ranking for failure.json: its texts, token ids and ranks."""
    decode = model.tokenizer.decode
    texts = {"prompt": decode(ranking.prompt_ids), "responses": [decode(ids) for ids in ranking.response_ids]}
    return {**texts, **vars(ranking)}


@torch.no_grad()
def score_rankings(model: SharedModel, rankings: Sequence[EncodedRanking], batch: AutoBatch) -> list[Tensor]:
    """Each ranking's scores (K,), in the given order, on the CPU."""
    indices = workers.share_of_process(range(len(rankings)))
    progress = tqdm(indices, desc="held-out rankings", unit="prompt", disable=len(indices) < batch.size)
    with model.role("reward"):
        return workers.gather(
            [score_in_batches(model, ranking_sequences(model, [rankings[index]]), batch).cpu() for index in progress]
        )


def _demonstration_sequences(model: SharedModel, examples: Sequence[EncodedExample]) -> Sequences:
    context_ids, response_ids = [row.context_ids for row in examples], [row.response_ids for row in examples]
    return Sequences(*response_batch(context_ids, response_ids, pad_id(model.tokenizer))).to(model.device)


@torch.no_grad()
def calibrate(
    config: RewardConfig, model: SharedModel, examples: Sequence[EncodedExample], batch: AutoBatch
) -> tuple[float, float]:
    """Makes the demonstrations score mean 0 and sd 1 (InstructGPT, section 3.5: "a bias ... mean score of 0").

    The scale goes into the head, so that the saved model carries it and a value function copied from it starts in
    units of the score. The offset goes to the role, since a head has no bias to hold it. Returns the offset, and the sd
    that the head was divided by.
    """
    lengths = [len(example.context_ids) + len(example.response_ids) for example in examples]
    longest_first = workers.share_of_process(sorted(range(len(lengths)), key=lambda index: -lengths[index]))
    parts: list[float] = []
    with model.role("reward"):
        for start in range(0, len(longest_first), config.micro_batch_size):
            part = [examples[index] for index in longest_first[start : start + config.micro_batch_size]]
            parts += score_in_batches(model, _demonstration_sequences(model, part), batch).tolist()
    scores = torch.tensor(workers.gather(parts), dtype=torch.float64)
    sd = float(scores.std()) if len(scores) > 1 else 1.0
    if config.scale is not None:
        sd = config.scale
    elif sd < SMALLEST_SCALE:
        log.warning("the demonstrations' scores hardly differ (sd %.3g): scaling by %g instead", sd, SMALLEST_SCALE)
        sd = SMALLEST_SCALE
    with model.role("reward", training=True):
        model.head.weight.data.div_(sd)
    offset = float(scores.mean()) / sd
    model.set_score_offset("reward", offset)
    return offset, sd


def require_same_after_reload(
    model: SharedModel, folder: StageFolder, score: Callable[[], list[Tensor]], batch: AutoBatch
) -> None:
    """RuntimeError unless the saved adapter gives exactly the scores of the trained one: a head may be lost on disk.

    Both `score` in the same groups: in another grouping 16 bits round otherwise.
    """
    trained, saved = model.adapter_state("reward"), read_adapter(folder.path / ADAPTER)[1]
    while True:
        size = batch.size
        model.load_adapter_state("reward", trained)
        before = score()
        model.load_adapter_state("reward", saved)
        after = score()
        if not workers.any_of(batch.size != size):
            break
    if not all(map(torch.equal, before, after)):
        raise RuntimeError(f"{folder.path / ADAPTER}: the saved reward model scores differently from the trained one")
