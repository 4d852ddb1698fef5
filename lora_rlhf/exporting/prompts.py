"""The prompts that an export is measured on: the user's, else those that the run recorded, else neutral ones."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lora_rlhf.configs.catalogue import WRITERS
from lora_rlhf.data.encode import EncodedPrompt, encode_prompts
from lora_rlhf.data.schema import Message, Prompt
from lora_rlhf.data.sources import read_prompts
from lora_rlhf.exporting.config import ExportConfig
from lora_rlhf.exporting.lineage import nested_value
from lora_rlhf.exporting.source import Source
from lora_rlhf.runs.folder import data_hash, find_data
from lora_rlhf.runs.manifest import read_manifest
from lora_rlhf.system.errors import UserError
from lora_rlhf.system.untrusted import read_object

REPORT_FILE = "report.json"
MOST_PROMPT_TOKENS = 512
NEUTRAL_PROMPTS = (
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
    """Prompts as token ids, and a description of their origin."""

    encoded: list[EncodedPrompt]
    origin: str


def choose_prompts(config: ExportConfig, source: Source) -> ParityPrompts:
    """At most `parity_prompts` distinct prompts, evenly spaced over their file. Raises UserError for a bad file."""
    prompts, origin = _read_prompts(config, source)
    distinct_prompts = list({prompt.key: prompt for prompt in prompts}.values())
    sample = evenly_spaced(distinct_prompts, config.parity_prompts)
    most_tokens = MOST_PROMPT_TOKENS
    if (context := getattr(source.config.get_text_config(), "max_position_embeddings", None)) is not None:
        most_tokens = min(most_tokens, context - config.parity_tokens)
    if most_tokens < 1:
        raise UserError(f"parity_tokens is {config.parity_tokens}, but the model's context is {context}: lower it")
    encoded, refused_rows = encode_prompts(source.tokenizer, sample, most_tokens)
    if not encoded:
        raise UserError(
            f"{origin}: none of {len(sample)} prompts can be used:\n{refused_rows.summary()}\nGive --prompts"
        )
    return ParityPrompts(encoded, origin)


def evenly_spaced(prompts: list[Prompt], most: int) -> list[Prompt]:
    """At most `most` of the prompts, from the first on and at even distances over the whole list."""
    count = min(most, len(prompts))
    return [prompts[number * len(prompts) // count] for number in range(count)]


def _read_prompts(config: ExportConfig, source: Source) -> tuple[list[Prompt], str]:
    """The prompts of --prompts, else of the first recorded file that is there, else neutral ones; and their origin."""
    if config.prompts is not None:
        return read_prompts(config.prompts)[0], config.prompts
    for record, description in _recorded_files(source):
        path = _unchanged_file(record, source.run)
        if path is not None:
            return read_prompts(path)[0], f"{description} ({path})"
    prompts = [Prompt((Message("user", text),)) for text in NEUTRAL_PROMPTS]
    return prompts, "neutral prompts of this package"


def _recorded_files(source: Source) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Yields (record, description) of files of prompts that the run recorded, the most suitable first."""
    report = source.run / REPORT_FILE
    if report.is_file():
        record = nested_value(read_object(report, "evaluate again, or remove it"), "sets", "prompts")
        if isinstance(record, Mapping):
            yield record, "the prompts that the run was evaluated on"
    for stage in reversed(WRITERS):
        if (source.run / stage.name / "manifest.json").is_file():
            record = nested_value(read_manifest(source.run / stage.name), "data", stage.trains_on)
            if isinstance(record, Mapping):
                yield record, f"prompts that {stage.name} was trained on, not held out"


def _unchanged_file(record: Mapping[str, Any], run: Path) -> str | None:
    """The path of a recorded file that is there with the content that was recorded; None if it is not.

    The run may be a stranger's, and a file that it names would become part of the export: its writer must have seen it.
    """
    if not all(isinstance(record.get(name, ""), str) for name in ("path", "from_run")) or not record.get("path"):
        return None
    path = find_data(record, run)
    return path if record.get("sha256") and Path(path).is_file() and data_hash(path) == record["sha256"] else None
