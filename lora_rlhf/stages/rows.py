"""Encodes a stage's data file once into a list on disk, split into training and validation; counts every row."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from tqdm import tqdm

from lora_rlhf.configs.common import StageConfig
from lora_rlhf.configs.sample import SampleConfig
from lora_rlhf.configs.stages import PPOConfig
from lora_rlhf.data.duplicates import drop_repeated_prompts
from lora_rlhf.data.encode import EncodedPrompt, Limits, encode_prompt
from lora_rlhf.data.formats import RecordKind
from lora_rlhf.data.refusals import RefusedRows, none_of_phrase, pluralize
from lora_rlhf.data.schema import Prompt, choose_split, fraction_between, split_position
from lora_rlhf.data.sources import Record, Source
from lora_rlhf.data.spool import Spool, make_prompt_spool
from lora_rlhf.system.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("lora_rlhf")

Encoded = TypeVar("Encoded")
Row = TypeVar("Row")


def length_limits(config: StageConfig) -> Limits:
    """The length limits of a stage."""
    return Limits(config.max_prompt_tokens, config.max_response_tokens, config.long_responses)


def source_of(config: StageConfig, name: str, kind: RecordKind, strict: bool | None = None) -> Source[Any]:
    """A data file of a stage, read as its flags --format, --columns and --strict say."""
    is_strict = config.strict if strict is None else strict
    return Source(name, kind, config.format, is_strict, columns=config.columns, has_flags=True)


@dataclass
class Split(Generic[Encoded]):
    """Encoded rows to train on and rows held out, by hash of their prompts' openings: no prompt is on both sides."""

    fraction: float
    train: Spool[Encoded]
    validation: Spool[Encoded]
    nearest: float = 1.0  # position of the prompt that would be held out first
    farthest: float = 0.0  # and of the one that would be last

    def add(self, opening: str, item: Encoded) -> None:
        """Adds a row to the training or the validation side."""
        position = split_position(opening)
        self.nearest, self.farthest = min(self.nearest, position), max(self.farthest, position)
        (self.validation if choose_split(opening, self.fraction) == "validation" else self.train).append(item)

    def require_some(self, path: str, num_read: int, refused: RefusedRows, tied: int = 0) -> None:
        """UserError when no row is left to train on, with what became of the `num_read` rows of the file."""
        if not self.train:
            tied_text = f"{tied} are all tied, " if tied else ""
            raise UserError(
                f"{path}: none of its {num_read} rows is left to train on: {len(self.validation)} are held out by "
                f"validation_fraction {self.fraction:g}, {tied_text}the others were refused\n{refused.summary()}"
            )

    def require_both(self, path: str) -> None:
        """UserError when no row is held out although the fraction is above 0: training would go unmeasured."""
        if self.fraction and not self.validation:
            rows = pluralize(len(self.train), "row")
            enough = fraction_between(self.nearest, self.farthest)
            if enough is None:
                raise UserError(
                    f"{path}: {rows}, too few to hold some out and train on the others; --validation_fraction 0 trains "
                    "on all there is, unmeasured"
                )
            raise UserError(
                f"{path}: validation_fraction {self.fraction:g} holds out none of its {rows}; "
                f"--validation_fraction {enough:g} would, and 0 trains on all of them, unmeasured"
            )


def encode_source(
    source: Source[Record],
    encode: Callable[[Record, RefusedRows], Encoded | None],
    keep: Callable[[Record, Encoded], None],
    refused: RefusedRows,
    rows: Iterable[Record] | None = None,
) -> None:
    """Encodes each row of a source and keeps what fits; `refused` gets what does not, and what the file refused.

    `rows` stands for the source where it is read in another way, without repeats for example.
    """
    for row in source if rows is None else rows:
        encoded = encode(row, refused)
        if encoded is not None:
            keep(row, encoded)
    refused.extend(source.refused)


def encode_prompts(
    config: SampleConfig | PPOConfig, source: Source[Prompt], tokenizer: "PreTrainedTokenizerBase"
) -> Spool[EncodedPrompt]:
    """The source's distinct prompts, encoded. UserError if none is left."""
    prompts, refused, repeated = make_prompt_spool(), RefusedRows(config.strict), RefusedRows()
    encode_source(
        source,
        lambda prompt, refused: encode_prompt(tokenizer, prompt, config.max_prompt_tokens, refused),
        lambda prompt, ids: prompts.append(EncodedPrompt(ids, prompt)),
        refused,
        drop_repeated_prompts(watched(source), config.deduplicate, repeated),
    )
    refused.extend(repeated)
    if not prompts:
        raise UserError(f"{config.prompts}: {none_of_phrase(source.read, 'prompt')} is left\n{refused.summary()}")
    report_refusals(config.prompts, refused)
    return prompts


def watched(rows: Iterable[Row]) -> Iterable[Row]:
    """The same rows, with a progress bar where reading them takes more than a moment."""
    bar: Iterable[Row] = tqdm(rows, desc="read", unit="row", delay=3)
    return bar


def report_refusals(path: str, refused: RefusedRows) -> None:
    """Warns of the rows of a file that could not be used, with reasons."""
    if summary := refused.summary():
        log.warning("%s:\n%s", path, summary)
