"""Between stages 1 and 2: K distinct responses of each prompt, ready to be ranked (InstructGPT, section 3.2)."""

import random
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lora_rlhf.config import SampleConfig
from lora_rlhf.data.encode import EncodedPrompt
from lora_rlhf.data.io import write_jsonl
from lora_rlhf.data.schema import Prompt, row_of
from lora_rlhf.data.sources import Source
from lora_rlhf.data.template import decode_response, stop_ids
from lora_rlhf.errors import UserError
from lora_rlhf.model.generate import generate
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.run import Parent, find_stage
from lora_rlhf.settings import check
from lora_rlhf.stages.rows import read_prompts_for
from lora_rlhf.stages.session import bring, log, open_parent_base, require_context, seed_everything

SPARE = 4  # responses drawn beyond the most that are kept, since a small model repeats itself


def sample(config: SampleConfig, model: SharedModel | None = None) -> SharedModel:
    """Writes K distinct responses per prompt, K drawn evenly from min_responses to max_responses."""
    check(config)
    sft = find_stage(f"{config.run}/sft", "sft")
    prompts: Source[Prompt] = Source(config.prompts, "prompts", config.format, config.strict)
    next(iter(prompts))  # a file that cannot be used is said before the model is loaded
    model = open_parent_base(config, sft, model)
    require_context(model, config)
    _bring_role(config, model, sft)
    _make_folder(config.to)
    encoded = read_prompts_for(config, prompts, model.tokenizer)

    rng = seed_everything(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    rows: list[dict[str, Any]] = []
    size = max(1, config.generation_batch_size // (config.max_responses + SPARE))
    for start in tqdm(range(0, len(encoded), size), desc="sample", unit="batch"):
        batch = [encoded[place] for place in range(start, min(start + size, len(encoded)))]
        rows += _sample_batch(config, model, batch, generator, rng)
    if not rows:
        raise UserError(
            f"no prompt gave {config.min_responses} distinct responses; lower --min-responses or raise --temperature"
        )
    if fewer := len(encoded) - len(rows):
        log.warning("%d of %d prompts gave fewer than %d distinct responses", fewer, len(encoded), config.min_responses)
    write_jsonl(config.to, rows)
    return model


def _make_folder(to: str) -> None:
    """The folder of the file to write, made before hours of sampling and not missed after them."""
    try:
        Path(to).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{to}: its folder cannot be made ({error.strerror}); choose another --to") from error


def _bring_role(config: SampleConfig, model: SharedModel, sft: Parent) -> None:
    if config.role == "sft":
        bring(model, "sft", sft)
    elif config.role == "policy":
        bring(model, "policy", find_stage(f"{config.run}/ppo", "ppo"))


def _sample_batch(
    config: SampleConfig,
    model: SharedModel,
    prompts: list[EncodedPrompt],
    generator: torch.Generator,
    rng: random.Random,
) -> list[dict[str, Any]]:
    draws = config.max_responses + SPARE
    with model.role(config.role):
        groups = generate(
            model,
            [prompt.prompt_ids for prompt in prompts],
            max_new_tokens=config.max_response_tokens,
            temperature=config.temperature,
            stop_ids=stop_ids(model.tokenizer),
            generator=generator,
            num_samples=draws,
            batch_size=config.generation_batch_size,
        )
    rows = []
    for prompt, group in zip(prompts, groups, strict=True):
        texts = dict.fromkeys(decode_response(model.tokenizer, response.ids).strip() for response in group)
        distinct = list(texts)[: rng.randint(config.min_responses, config.max_responses)]
        if len(distinct) >= config.min_responses:
            rows.append({**row_of(prompt.prompt), "responses": distinct})
    return rows
