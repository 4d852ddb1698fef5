"""The choice of the engine: what a model's config allows, whether it computes the same, and which is faster here."""

import logging
import statistics
import time
from typing import Literal

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from lora_rlhf.model.base import load_config
from lora_rlhf.model.decode_step import Slots, Step
from lora_rlhf.model.drawing import Drawing, RowRoles
from lora_rlhf.model.generate import Engine, generate_seeded
from lora_rlhf.model.heads import lm_logits
from lora_rlhf.model.precision import expected_rounding, largest_difference
from lora_rlhf.model.shared import BASE, SharedModel
from lora_rlhf.system.errors import UserError

log = logging.getLogger("lora_rlhf")

EngineChoice = Literal["auto", "plain", "static"]

TIMED_TOKENS = 24  # of each response that both engines draw to be timed
# The static engine is taken unless the plain one is this much faster: no slot is refilled while they are timed.
STATIC_MARGIN = 1.05
PROBE_LENGTHS = (13, 7, 2)  # of the texts that are read with a static cache and without one
NUM_LIKELY_TOKENS = 10  # next tokens of each text that are compared: 16 bits round rare tokens too much
# A model with huge activations rounds more than others. It may be off by twice what two shapes of a batch without a
# cache are apart, but by less than a row is that sees its neighbour's tokens, or not all of its own: 1 and more.
SHAPE_FACTOR, WRONG_GAP = 2, 1.0


def find_static_fault(config: PreTrainedConfig, context_tokens: int) -> str | None:
    """Why a model of this text config cannot generate `context_tokens` tokens from a static cache; None if it can."""
    if getattr(config, "alibi", False):
        return "its positions are distances between tokens (ALiBi), which no mask tells it"
    if config._attn_implementation not in ("sdpa", "eager", None):
        return f"its attention, {config._attn_implementation}, takes no mask for each row"
    for layer in DynamicCache(config=config).layers:
        window = layer.sliding_window if type(layer) is DynamicSlidingWindowLayer else context_tokens
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            return "not all of its layers are attention with a cache of their own"
        if window < context_tokens:
            return f"its layers see {window} tokens back, fewer than the {context_tokens} of prompt and response"
    return None


def require_static_engine(name: str, trust_remote_code: bool, context_tokens: int) -> None:
    """UserError if the config of a base model excludes the static engine. Needs no weights."""
    _raise_static_fault(find_static_fault(load_config(name, trust_remote_code).get_text_config(), context_tokens), name)


def _raise_static_fault(fault: str | None, name: str) -> None:
    """UserError if there is a fault."""
    if fault is not None:
        raise UserError(f"engine is 'static', but base model {name!r} cannot: {fault}; use --engine auto or plain")


def usual_engine(model: SharedModel, context: int) -> Engine:
    """The engine of who samples too little to time both: static on a GPU, where nothing speaks against it."""
    if model.device.type != "cuda" or find_static_fault(model.config, context) or _find_disagreement(model):
        return "plain"
    return "static"


def pick_engine(
    choice: EngineChoice,
    model: SharedModel,
    prompts: list[list[int]],
    *,
    context: int,
    max_new_tokens: int,
    temperature: float,
    batch_size: int,
) -> Engine:
    """The engine for rollouts of the active role. "auto" takes the faster one, and logs its choice and reason.

    On a GPU it times both on these prompts. A CPU repeats a run bit for bit, so that no clock may decide there: static.
    `context` is the most tokens that a prompt and its response may have together. UserError for "static" if the model
    cannot use it, by its config or by what it computes.
    """
    if choice == "plain":
        return "plain"
    fault = find_static_fault(model.config, context) or _find_disagreement(model)
    if choice == "static":
        _raise_static_fault(fault, model.base.spec.name)
        return "static"
    if fault is not None:
        log.debug("engine: plain, since %s", fault)
        return "plain"
    if model.device.type == "cpu":
        log.debug("engine: static")
        return "static"
    tokens = min(TIMED_TOKENS, max_new_tokens)
    plain, static = (
        measure_tokens_per_second(model, engine, prompts, tokens, temperature, batch_size)
        for engine in ("plain", "static")
    )
    engine: Engine = "static" if static * STATIC_MARGIN >= plain else "plain"
    log.debug("engine: %s, of plain %.0f and static %.0f tokens/s in a first try", engine, plain, static)
    return engine


def measure_tokens_per_second(
    model: SharedModel, engine: Engine, prompts: list[list[int]], tokens: int, temperature: float, batch_size: int
) -> float:
    """The speed at which an engine draws `tokens` tokens for each of `batch_size` prompts, the given ones in turn.

    The upper quartile of its steps: slower ones read prompts, captured a CUDA graph, or shared the machine.
    """
    batch = [prompts[row % len(prompts)] for row in range(batch_size)]
    rates, last_time = [], time.monotonic()

    def record_rate(count: int) -> None:
        nonlocal last_time
        time_now = time.monotonic()
        rates.append(count / max(time_now - last_time, 1e-9))
        last_time = time_now

    generate_seeded(
        model,
        batch,
        [[row] for row in range(batch_size)],
        max_new_tokens=tokens,
        temperature=temperature,
        stop_ids=[],
        batch_size=batch_size,
        engine=engine,
        on_tokens=record_rate,
    )
    return statistics.quantiles(rates, n=4)[2] if len(rates) > 1 else rates[0]


def _find_disagreement(model: SharedModel) -> str | None:
    """How the model's log-probabilities from a static cache are wrong; None if they equal those without a cache."""
    with model.role(BASE):
        gap, between_shapes = _measure_gaps(model)
    if gap <= min(max(expected_rounding(model).few_tokens, SHAPE_FACTOR * between_shapes), WRONG_GAP):
        return None
    return f"it computes something else from a static cache: a log-probability is off by {gap:.2g}"


@torch.no_grad()
def _measure_gaps(model: SharedModel) -> tuple[float, float]:
    """(gap of the static cache, gap of rounding) in nats, over the likely next tokens of a few short texts.

    The texts have different lengths, and all but their last token is cached. The first gap is between the cached texts
    and each text alone without a cache. The second is between all texts in one batch and each alone, both without a
    cache: this much is rounding.
    """
    generator, device, count = torch.Generator().manual_seed(0), model.device, len(PROBE_LENGTHS)
    width, lengths = max(PROBE_LENGTHS), torch.tensor(PROBE_LENGTHS, device=device)
    ids = torch.randint(model.config.vocab_size, (count, width), generator=generator).to(device)
    prompt_cache = DynamicCache(config=model.config)
    positions = torch.arange(width, device=device).expand_as(ids)
    model.backbone(input_ids=ids, position_ids=positions, past_key_values=prompt_cache, use_cache=True)
    rows = torch.arange(count, device=device)
    slots = Slots(count, len(prompt_cache.layers), width, 1, device)
    slots.cache.copy_prompts(prompt_cache, rows, rows)
    last_ids = ids.gather(1, lengths[:, None] - 1)[:, 0]
    uniforms = torch.zeros((count, 1), dtype=torch.float64, device=device)
    is_running = torch.ones_like(last_ids, dtype=torch.bool)
    first = torch.zeros_like(last_ids)
    slots.start(rows, first, last_ids, lengths - 1, uniforms, is_running, first.float())
    step = Step(model, slots, Drawing(1, 1.0, []), RowRoles([0] * count))
    static_logprobs = step.logits(count, width).log_softmax(-1)
    texts = [row[:length] for row, length in zip(ids, PROBE_LENGTHS, strict=True)]
    logits_alone = torch.stack([_logits_without_cache(model, text[None])[0, -1] for text in texts])
    expected, likely_tokens = logits_alone.log_softmax(-1).topk(NUM_LIKELY_TOKENS)
    # padded on the right: no token sees padding after it
    batched_logprobs = _logits_without_cache(model, ids)[rows, lengths - 1].log_softmax(-1)
    gap = largest_difference(static_logprobs.gather(1, likely_tokens), expected)
    return gap, largest_difference(batched_logprobs.gather(1, likely_tokens), expected)


def _logits_without_cache(model: SharedModel, ids: Tensor) -> Tensor:
    """ids (B, T) -> float32 logits (B, T, V), without a cache."""
    return lm_logits(model.causal, model.backbone(input_ids=ids, use_cache=False).last_hidden_state)
