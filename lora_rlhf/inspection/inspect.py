"""`lora-rlhf inspect`: reads a few rows, makes the batch that a stage would make of them, and shows it."""

import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch

from lora_rlhf.configs.catalogue import BY_NAME, SFT, WRITERS
from lora_rlhf.configs.stages import PPOConfig
from lora_rlhf.configs.values import check
from lora_rlhf.data.chosen_template import choose_template
from lora_rlhf.data.encode import (
    EncodedExample,
    EncodedPrompt,
    EncodedRanking,
    EncodedSteps,
    Limits,
    encode_demonstration,
    encode_prompt,
    encode_ranking,
    encode_steps,
)
from lora_rlhf.data.labels import drop_duplicate_responses
from lora_rlhf.data.outputs import require_output
from lora_rlhf.data.refusals import RefusedRows
from lora_rlhf.data.schema import Demonstration, Prompt, Ranking, StepLabels
from lora_rlhf.data.sources import Source, every_turn
from lora_rlhf.data.template import ensure_template, pad_id, stop_ids
from lora_rlhf.inspection.batches import (
    Batch,
    Origin,
    demonstration_batch,
    prompt_batch,
    ranked_response_batch,
    step_batch,
)
from lora_rlhf.inspection.config import InspectConfig
from lora_rlhf.inspection.paint import batch_page, terminal_text
from lora_rlhf.model.base import load_tokenizer
from lora_rlhf.model.generate import Response, draw_seeds
from lora_rlhf.model.open import open_base, require_trust
from lora_rlhf.runs.folder import find_stage, has_stage
from lora_rlhf.stages.rows import report_refusals
from lora_rlhf.stages.sampler import Sampler
from lora_rlhf.stages.session import load_parent_role, require_context
from lora_rlhf.system.disk import write_text
from lora_rlhf.system.errors import UserError
from lora_rlhf.system.shown_text import print_painted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Record = TypeVar("Record", Demonstration, Ranking, StepLabels, Prompt)
Encoded = TypeVar("Encoded")


@dataclass(frozen=True)
class EncodedRows(Generic[Encoded]):
    """The rows of the batch, encoded, and the place of each in the file."""

    encoded: list[Encoded]
    origins: list[Origin]


def inspect(config: InspectConfig) -> None:
    """Prints the batch, and writes it as an HTML page with --html. Raises UserError if the file has no such rows."""
    check(config)
    require_output("--html", config.html, [config.file])
    tokenizer, heading = _load_tokenizer_and_notes(config)
    stage = BY_NAME[config.stage]
    reader = BATCH_READERS[stage.reads[stage.trains_on]]
    if "steps" in stage.reads and _holds_steps(config):
        reader = _read_step_batch
    batch = reader(config, tokenizer)
    heading = [f"{config.stage} batch of {config.file}", *heading]
    if config.html is not None:
        try:
            write_text(Path(config.html), batch_page(batch, heading))
        except OSError as error:
            raise UserError(f"{config.html}: cannot be written ({error.strerror}); choose another --html") from error
    print_painted(terminal_text(batch, heading, _is_in_color(config)))
    if config.html is not None:
        print(f"page: {config.html}")


def _is_in_color(config: InspectConfig) -> bool:
    """Whether the terminal output uses colours: --color, or else by the terminal and NO_COLOR."""
    if config.color != "auto":
        return config.color == "always"
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _load_tokenizer_and_notes(config: InspectConfig) -> tuple["PreTrainedTokenizerBase", list[str]]:
    """The tokenizer with the chat template that a stage would use, and two lines about both for the heading."""
    if config.run is None:
        tokenizer = load_tokenizer(config.model, config.trust_remote_code)
        has_template = tokenizer.chat_template is not None
        template_origin = (
            "the tokenizer's own" if has_template else "the default of this package, since the tokenizer has none"
        )
        choose_template(tokenizer, config.chat_template, config.template_args, config.system == "fold")
        if config.has_template_choice:
            template_origin = "chosen by the flags"
        name = config.model
    else:
        base = find_stage(f"{config.run}/{SFT.name}", SFT.name).manifest["base"]
        require_trust(base, config.trust_remote_code)
        name, template_origin = base["name"], f"as in {config.run}"
        tokenizer = load_tokenizer(name, base["trust_remote_code"])
        tokenizer.chat_template = base["chat_template"]
    ensure_template(tokenizer)
    padding, stops = pad_id(tokenizer), stop_ids(tokenizer)
    end_note = ", which also ends responses: the mask tells them apart" if padding in stops else ""
    ends = " or ".join(f"{stop} {tokenizer.decode([stop])}" for stop in stops)
    return tokenizer, [
        f"tokenizer: {name}; chat template: {template_origin}",
        f"a response ends at {ends}; padding is {padding} {tokenizer.decode([padding])}{end_note}",
    ]


def _read_demonstration_batch(config: InspectConfig, tokenizer: "PreTrainedTokenizerBase") -> Batch:
    """The batch of the demonstrations in the file."""
    limits = _length_limits(config)

    def encode(row: Demonstration, refused: RefusedRows) -> EncodedExample | None:
        return encode_demonstration(tokenizer, row, limits, refused, config.train_empty_thoughts)

    source: Source[Demonstration] = Source(
        config.file, "demonstrations", config.format, columns=config.columns, has_flags=True
    )
    rows = _encode_rows(config, every_turn(source) if config.every_turn else source, source, encode)
    return demonstration_batch(BY_NAME[config.stage], tokenizer, rows.encoded, rows.origins, config.packing)


def _read_ranking_batch(config: InspectConfig, tokenizer: "PreTrainedTokenizerBase") -> Batch:
    """The batch of the rankings in the file. A response that a ranking repeats counts once, as in training."""
    limits = _length_limits(config)

    def encode(row: Ranking, refused: RefusedRows) -> EncodedRanking | None:
        distinct = drop_duplicate_responses(row, refused)
        return None if distinct is None else encode_ranking(tokenizer, distinct, limits, refused)

    source: Source[Ranking] = Source(config.file, "rankings", config.format, columns=config.columns, has_flags=True)
    rows = _encode_rows(config, source, source, encode)
    return ranked_response_batch(BY_NAME[config.stage], tokenizer, rows.encoded, rows.origins)


def _holds_steps(config: InspectConfig) -> bool:
    """Whether the file's first row that can be read labels the steps of an answer."""
    source: Source[Any] = Source(config.file, None, config.format, columns=config.columns, has_flags=True)
    return isinstance(next(iter(source), None), StepLabels)


def _read_step_batch(config: InspectConfig, tokenizer: "PreTrainedTokenizerBase") -> Batch:
    """The batch of the answers in the file whose steps are labelled."""
    limits = _length_limits(config)

    def encode(row: StepLabels, refused: RefusedRows) -> EncodedSteps | None:
        return encode_steps(tokenizer, row, config.step_end, limits, refused)

    source: Source[StepLabels] = Source(config.file, "steps", config.format, columns=config.columns, has_flags=True)
    rows = _encode_rows(config, source, source, encode)
    return step_batch(BY_NAME[config.stage], tokenizer, rows.encoded, rows.origins)


def _read_prompt_batch(config: InspectConfig, tokenizer: "PreTrainedTokenizerBase") -> Batch:
    """The batch of the prompts in the file; with --run, with a response of the run's newest model to each."""

    def encode(row: Prompt, refused: RefusedRows) -> EncodedPrompt | None:
        ids = encode_prompt(tokenizer, row, config.max_prompt_tokens, refused)
        return None if ids is None else EncodedPrompt(ids, row)

    source: Source[Prompt] = Source(config.file, "prompts", config.format, columns=config.columns, has_flags=True)
    rows = _encode_rows(config, source, source, encode)
    responses = None if config.run is None else _sample_responses(config, config.run, rows.encoded)
    return prompt_batch(BY_NAME[config.stage], tokenizer, rows.encoded, rows.origins, responses)


BATCH_READERS = {  # by a stage's training data
    "demonstrations": _read_demonstration_batch,
    "rankings": _read_ranking_batch,
    "prompts": _read_prompt_batch,
}


def _length_limits(config: InspectConfig) -> Limits:
    return Limits(config.max_prompt_tokens, config.max_response_tokens, config.long_responses)


def _encode_rows(
    config: InspectConfig,
    records: Iterable[Record],
    source: Source[Record],
    encode: Callable[[Record, RefusedRows], Encoded | None],
) -> EncodedRows[Encoded]:
    """Encodes `config.rows` usable rows, from the usable row number `config.start` on.

    Reports the rows that `encode` refused on the way. Raises UserError if no row is left.
    """
    rows: EncodedRows[Encoded] = EncodedRows([], [])
    refused = RefusedRows()
    num_usable = 0
    for record in records:
        truncated_before = refused.truncated_prompts
        encoded = encode(record, refused)
        num_usable += encoded is not None
        if encoded is None or num_usable <= config.start:
            continue
        notes = []
        if refused.truncated_prompts > truncated_before:
            notes.append(f"the prompt lost its beginning: max_prompt_tokens is {config.max_prompt_tokens}")
        origin = record.origin if isinstance(record, Prompt) else record.prompt.origin
        rows.encoded.append(encoded)
        rows.origins.append(Origin(origin, tuple(notes)))
        if len(rows.encoded) == config.rows:
            break
    refused.extend(source.refused)
    if not rows.encoded:
        raise UserError(
            f"{config.file}: start is {config.start}, but {num_usable} of its rows can be used\n"
            f"{refused.summary()}".strip()
        )
    report_refusals(config.file, refused)
    return rows


def _sample_responses(config: InspectConfig, run: str, prompts: list[EncodedPrompt]) -> list[Response]:
    """Samples a response of the run's newest model to each prompt, at temperature 1."""
    sft = find_stage(f"{run}/{SFT.name}", SFT.name)
    settings = PPOConfig(
        run=run,
        prompts=config.file,
        max_prompt_tokens=config.max_prompt_tokens,
        max_response_tokens=config.max_response_tokens,
    )
    model = open_base(sft.manifest["base"], settings.device, trust_remote_code=config.trust_remote_code)
    require_context(model, settings)
    newest_stage = [stage for stage in WRITERS if has_stage(run, stage.name)][-1]
    load_parent_role(model, newest_stage.role, find_stage(f"{run}/{newest_stage.name}", newest_stage.name))
    seeds = draw_seeds(torch.Generator().manual_seed(config.seed), len(prompts), 1)
    groups = Sampler(settings, model, newest_stage.role).sample_shared([prompt.prompt_ids for prompt in prompts], seeds)
    return [group[0] for group in groups]
