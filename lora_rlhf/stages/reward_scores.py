"""What the reward role says of rankings and demonstrations: scores, calibration, a check of what was saved."""

import itertools
import logging
from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from lora_rlhf.configs.stages import RewardConfig
from lora_rlhf.data.batches import pad_left, pad_right, ranking_batch
from lora_rlhf.data.encode import EncodedExample, EncodedRanking
from lora_rlhf.data.template import pad_id
from lora_rlhf.model.adapters import read_adapter
from lora_rlhf.model.forward import Sequences, in_micro_batches, response_scores
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.runs.folder import ADAPTER, StageFolder
from lora_rlhf.stages.fitting import Pieces
from lora_rlhf.system import workers

log = logging.getLogger("lora_rlhf")

SMALLEST_SCALE = 0.05  # a sd below this is noise: dividing by it would make a loud reward of it


def ranking_sequences(model: SharedModel, rankings: Sequence[EncodedRanking]) -> Sequences:
    """All responses of all rankings, side by side, on the model's device."""
    return Sequences(*ranking_batch(rankings, pad_id(model.tokenizer))).to(model.device)


@torch.no_grad()
def score_rankings(
    model: SharedModel, rankings: Sequence[EncodedRanking], pieces: Pieces, offset: float
) -> list[Tensor]:
    """Each ranking's scores (K,), in the given order, on the CPU."""
    own = workers.share(range(len(rankings)))
    shown = tqdm(own, desc="held-out rankings", unit="prompt", disable=len(own) < pieces.size)
    with model.role("reward"):
        return workers.gather(
            [_in_pieces(model, ranking_sequences(model, [rankings[place]]), pieces) - offset for place in shown]
        )


def _in_pieces(model: SharedModel, sequences: Sequences, pieces: Pieces) -> Tensor:
    """The active role's scores (B,), on the CPU."""
    return pieces.run(
        lambda size: in_micro_batches(lambda part: response_scores(model, part), sequences, size), "scoring"
    ).cpu()


def _example_sequences(model: SharedModel, examples: Sequence[EncodedExample]) -> Sequences:
    pad = pad_id(model.tokenizer)
    prompts, responses = [row.prompt_ids for row in examples], [row.response_ids for row in examples]
    return Sequences(*pad_left(prompts, pad), *pad_right(responses, pad)).to(model.device)


@torch.no_grad()
def calibrate(
    config: RewardConfig, model: SharedModel, examples: Sequence[EncodedExample], pieces: Pieces
) -> tuple[float, float]:
    """Makes the demonstrations score mean 0 and sd 1 (InstructGPT, section 3.5: "a bias ... mean score of 0").

    The scale goes into the head, so that the saved model carries it and a value function copied from it starts in
    units of the score. The offset, which a head without a bias cannot hold, is returned, with the sd divided by.
    """
    lengths = [len(example.prompt_ids) + len(example.response_ids) for example in examples]
    longest_first = workers.share(sorted(range(len(lengths)), key=lambda place: -lengths[place]))
    parts: list[float] = []
    with model.role("reward"):
        for start in range(0, len(longest_first), config.micro_batch_size):
            part = [examples[place] for place in longest_first[start : start + config.micro_batch_size]]
            parts += _in_pieces(model, _example_sequences(model, part), pieces).tolist()
    scores = torch.tensor(workers.gather(parts), dtype=torch.float64)
    sd = float(scores.std()) if len(scores) > 1 else 1.0
    if config.scale is not None:
        sd = config.scale
    elif sd < SMALLEST_SCALE:
        log.warning("the demonstrations' scores hardly differ (sd %.3g): scaling by %g instead", sd, SMALLEST_SCALE)
        sd = SMALLEST_SCALE
    with model.role("reward", training=True):
        model.head.weight.data.div_(sd)
    return float(scores.mean()) / sd, sd


def require_same_after_reload(
    model: SharedModel,
    folder: StageFolder,
    rankings: Sequence[EncodedRanking],
    scores: list[Tensor],
    offset: float,
    pieces: Pieces,
) -> None:
    """What was saved scores exactly like what was trained: a head lost on disk would show here, not weeks later."""
    model.load_adapter_state("reward", read_adapter(folder.path / ADAPTER)[1])
    again = score_rankings(model, list(itertools.islice(rankings, 8)), pieces, offset)
    if any(not torch.equal(one, other) for one, other in zip(scores, again, strict=False)):
        raise RuntimeError(f"{folder.path / ADAPTER}: the saved reward model scores differently from the trained one")
