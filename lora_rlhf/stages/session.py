"""What every stage does before its first step: open the base, bring in its parents' adapters, check that they fit."""

import logging
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lora_rlhf.config import PPOConfig, SampleConfig, StageConfig
from lora_rlhf.data.duplicates import without_repeats
from lora_rlhf.data.encode import EncodedPrompt, Limits, encode_prompt
from lora_rlhf.data.refusals import RefusedRows
from lora_rlhf.data.schema import Prompt, split_of, split_position
from lora_rlhf.data.sources import Source
from lora_rlhf.data.spool import Spool, spool_prompts
from lora_rlhf.errors import UserError
from lora_rlhf.model.adapters import read_adapter
from lora_rlhf.model.open import describe_base, open_base
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.run import Parent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("lora_rlhf")

Encoded = TypeVar("Encoded")
Row = TypeVar("Row")

EPS = 1e-5  # AdamW's: with PyTorch's 1e-8 the first PPO updates are several times larger (arXiv 2403.17031)
FLOOR = 0.1  # every schedule ends, and PPO's warm-up begins, at a tenth of the peak (InstructGPT, appendix C)


def open_parent_base(config: StageConfig, parent: Parent, model: SharedModel | None) -> SharedModel:
    """The base that the parent was trained on: the one in memory, or loaded as the parent's manifest says."""
    if model is None:
        return open_base(parent.manifest["base"], config.device, config.gradient_checkpointing)
    here, then = describe_base(model), parent.manifest["base"]
    for key in ("source_hash", "quantization", "compute_dtype"):
        if here[key] != then[key]:
            raise UserError(
                f"{parent.folder} was trained on a base with {key} {then[key]!r}; the one in memory, "
                f"{model.base.spec.name!r}, has {here[key]!r}; run this stage by itself, or train all stages on one"
            )
    return model


def bring(model: SharedModel, role: str, parent: Parent) -> None:
    """Loads a parent's adapter under its role, unless it is in memory. UserError when another one is."""
    if role not in model.roles:
        model.load_role(role, parent.adapter)
    elif not same_state(model.adapter_state(role), read_adapter(parent.adapter)[1]):
        raise UserError(
            f"{parent.adapter} is not the {role} adapter in memory, which another stage of this run left there: run "
            "this stage by itself, or leave the other folder out"
        )


def same_state(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two adapters are equal, bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def require_context(model: SharedModel, config: StageConfig) -> None:
    """UserError when a longest prompt with a longest response would not fit the model's context."""
    context = getattr(model.config, "max_position_embeddings", None)
    asked = config.max_prompt_tokens + config.max_response_tokens
    if context is not None and asked > context:
        raise UserError(
            f"max_prompt_tokens {config.max_prompt_tokens} and max_response_tokens {config.max_response_tokens} make "
            f"{asked} tokens, but the context of {model.base.spec.name!r} is {context}: lower one of them"
        )


def limits_of(config: StageConfig) -> Limits:
    """The length limits of a stage."""
    return Limits(config.max_prompt_tokens, config.max_response_tokens, config.long_responses)


@dataclass
class Split(Generic[Encoded]):
    """Encoded rows to train on and rows held out, by hash of their prompts' openings: no prompt is on both sides."""

    fraction: float
    train: Spool[Encoded]
    validation: Spool[Encoded]
    nearest: float = 1.0  # position of the prompt that would be held out first

    def add(self, opening: str, item: Encoded) -> None:
        """Puts one row on its side."""
        self.nearest = min(self.nearest, split_position(opening))
        (self.validation if split_of(opening, self.fraction) == "validation" else self.train).append(item)

    def require_both(self, path: str) -> None:
        """UserError when nothing is held out though something should be: nobody could tell how training went."""
        if self.fraction and not self.validation:
            enough = min(0.99, math.ceil(100 * self.nearest + 1) / 100)
            raise UserError(
                f"{path}: validation_fraction {self.fraction:g} holds out none of its {len(self.train)} rows; "
                f"--validation_fraction {enough:g} would, and 0 trains on all of them unmeasured"
            )


def read_prompts_for(
    config: SampleConfig | PPOConfig, source: Source[Prompt], tokenizer: "PreTrainedTokenizerBase"
) -> Spool[EncodedPrompt]:
    """The source's distinct prompts, encoded. UserError if none is left."""
    encoded, refused, repeated = spool_prompts(), RefusedRows(config.strict), RefusedRows()
    for prompt in without_repeats(watched(source), config.deduplicate, repeated):
        ids = encode_prompt(tokenizer, prompt, config.max_prompt_tokens, refused)
        if ids is not None:
            encoded.append(EncodedPrompt(ids, prompt))
    for other in (source.refused, repeated):
        refused.extend(other)
    if not encoded:
        raise UserError(f"{config.prompts}: none of its {source.read} prompts is left\n{refused.summary()}")
    report_refusals(config.prompts, refused)
    return encoded


def watched(rows: Iterable[Row]) -> Iterable[Row]:
    """The same rows, with a progress bar where reading them takes more than a moment."""
    bar: Iterable[Row] = tqdm(rows, desc="read", unit="row", delay=3)
    return bar


def report_refusals(path: str, refused: RefusedRows) -> None:
    """Says what of a file could not be used; nothing is dropped in silence."""
    if summary := refused.summary():
        log.warning("%s:\n%s", path, summary)


def seed_everything(seed: int) -> random.Random:
    """Seeds PyTorch's global generator, which new adapters draw from, and returns one for the order of the data."""
    torch.manual_seed(seed)
    return random.Random(seed)


def batches(count: int, size: int, rng: random.Random) -> list[list[int]]:
    """One shuffled pass over `count` indices in batches; the last may be smaller."""
    order = list(range(count))
    rng.shuffle(order)
    return [order[start : start + size] for start in range(0, count, size)]


def adamw(parameters: Iterable[nn.Parameter], learning_rate: float) -> torch.optim.AdamW:
    """AdamW as all of RLHF uses it here: no weight decay, since an adapter's zero is not a better model."""
    return torch.optim.AdamW(list(parameters), lr=learning_rate, eps=EPS, weight_decay=0.0)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def role_parameters(model: SharedModel, role: str) -> list[nn.Parameter]:
    """The parameters that a role trains."""
    return [parameter for _, parameter in model.named_parameters_of(role)]


def pick_fixed(prompts: Sequence[object], count: int) -> list[int]:
    """Indices of the prompts whose responses are recorded over time: spread evenly over the data."""
    step = max(1, len(prompts) // count)
    return list(range(0, len(prompts), step))[:count]
