"""The prompts that an export is measured on: the user's, those of the run's evaluation, or what else there is."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lora_rlhf.configs.catalogue import WRITERS
from lora_rlhf.data.encode import EncodedPrompt, encode_prompts
from lora_rlhf.data.schema import Message, Prompt
from lora_rlhf.data.sources import read_prompts
from lora_rlhf.exporting.config import ExportConfig
from lora_rlhf.exporting.lineage import at
from lora_rlhf.exporting.source import Source
from lora_rlhf.runs.manifest import read_manifest
from lora_rlhf.system.errors import UserError
from lora_rlhf.system.untrusted import read_object

REPORT = "report.json"
MOST_REPORT_BYTES = 256 * 2**20
MOST_PROMPT_TOKENS = 512
NEUTRAL = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "Explain why the sky is blue.",
    "Give me three names for a cat.",
    "How do I boil an egg?",
    "Translate 'good morning' into Spanish.",
    "What is 17 plus 25?",
    "Summarize: The train was late because of the snow, so we missed the meeting.",
)


class ParityPrompts(NamedTuple):
    """Prompts as ids, and where they come from, in words."""

    encoded: list[EncodedPrompt]
    origin: str


def choose_prompts(config: ExportConfig, source: Source) -> ParityPrompts:
    """At most `parity_prompts` distinct prompts, spread evenly over where they come from. UserError for a bad file."""
    prompts, origin = _read(config, source)
    distinct = list({prompt.key: prompt for prompt in prompts}.values())
    step = max(1, len(distinct) // config.parity_prompts)
    sample = distinct[::step][: config.parity_prompts]
    context = getattr(source.config.get_text_config(), "max_position_embeddings", None) or 2**20
    room = min(MOST_PROMPT_TOKENS, context - config.parity_tokens)
    if room < 1:
        raise UserError(f"parity_tokens is {config.parity_tokens}, but the model's context is {context}: lower it")
    encoded, refused = encode_prompts(source.tokenizer, sample, room)
    if not encoded:
        raise UserError(f"{origin}: none of {len(sample)} prompts can be used:\n{refused.summary()}\nGive --prompts")
    return ParityPrompts(encoded, origin)


def _read(config: ExportConfig, source: Source) -> tuple[list[Prompt], str]:
    if config.prompts is not None:
        return read_prompts(config.prompts)[0], config.prompts
    for path, what in _recorded(source):
        if _is_beside(path, source.run):
            return read_prompts(path)[0], f"{what} ({path})"
    prompts = [Prompt((Message("user", text),)) for text in NEUTRAL]
    return prompts, "neutral prompts of this package"


def _recorded(source: Source) -> Iterator[tuple[str, str]]:
    """Files that the run names, the best first."""
    report = source.run / REPORT
    if report.is_file():
        path = at(read_object(report, "evaluate again, or remove it", MOST_REPORT_BYTES), "config", "prompts")
        if isinstance(path, str):
            yield path, "the prompts that the run was evaluated on"
    for stage in reversed(WRITERS):
        if (source.run / stage.name / "manifest.json").is_file():
            path = at(read_manifest(source.run / stage.name), "data", stage.trains_on, "path")
            if isinstance(path, str):
                yield path, f"prompts that {stage.name} was trained on, not held out"


def _is_beside(path: str, run: Path) -> bool:
    """Whether a recorded file is there, within the folder that holds the run: a run may be anybody's, and what it
    names would go into the export.
    """
    real = Path(os.path.realpath(path))
    return real.is_file() and real.is_relative_to(Path(os.path.realpath(run)).parent)
