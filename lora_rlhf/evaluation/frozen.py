"""The frozen sets beside the prompts: probes, multiple-choice questions and held-out text."""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from lora_rlhf.data.encode import EncodedPrompt, encode_prompts
from lora_rlhf.data.schema import Demonstration, Prompt, Text
from lora_rlhf.data.sources import Source, every_turn, read_texts
from lora_rlhf.evaluation.config import EvaluateConfig
from lora_rlhf.evaluation.inputs import content_hash, read_distinct_prompts
from lora_rlhf.evaluation.report_model import FrozenSet
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.probes.bins import require_checkable
from lora_rlhf.probes.sets import (
    ENGLISH,
    ChoiceSet,
    ProbeSet,
    RefusalSet,
    World,
    read_choices,
    read_probes,
    read_refusals,
)
from lora_rlhf.stats.text_metrics import is_refusal
from lora_rlhf.system.errors import UserError

log = logging.getLogger("lora_rlhf")

AUTO, NONE = "auto", "none"
NO_WORLD = "the prompts are not the tiny world's, so give a file with"


@dataclass(frozen=True)
class FrozenSets:
    """The frozen sets. `sets`: their entries in the report; `left_out`: why the others are missing."""

    probes: ProbeSet | None
    choices: ChoiceSet | None
    texts: Sequence[Text] | None
    tool_rows: Sequence[Demonstration]
    grounded: Sequence[Prompt]
    refusals: RefusalSet | None
    sets: dict[str, FrozenSet]
    left_out: dict[str, str]

    def asked_beside(self) -> dict[str, Sequence[Prompt]]:
        """The prompts of each set from a user's file that is answered beside the prompts, by the set's name."""
        prompts_by_set: dict[str, Sequence[Prompt]] = {
            "tools": [row.prompt for row in self.tool_rows],
            "grounded": self.grounded,
            "refusals": [case.prompt for case in self.refusals.cases] if self.refusals else [],
        }
        return {name: prompts for name, prompts in prompts_by_set.items() if prompts}

    def encode_prompts(self, model: SharedModel, max_prompt_tokens: int) -> dict[str, list[EncodedPrompt]]:
        """The ids of every prompt that is asked, by the name of its set.

        Raises UserError if one cannot be encoded whole: a bin needs all of its cases, and a figure its context.
        """
        probes = [probe.prompt for probe in self.probes.probes] if self.probes else []
        encoded_by_set: dict[str, list[EncodedPrompt]] = {"probes": [], "tools": [], "grounded": [], "refusals": []}
        for name, prompts in {"probes": probes, **self.asked_beside()}.items():
            encoded_by_set[name], refused_rows = encode_prompts(model.tokenizer, prompts, max_prompt_tokens)
            if refused_rows.count or refused_rows.truncated_prompts:
                raise UserError(
                    f"--{name}: {refused_rows.count} refused and {refused_rows.truncated_prompts} truncated at "
                    f"max_prompt_tokens {max_prompt_tokens}: raise it, or leave the set out. {refused_rows.summary()}"
                )
        return encoded_by_set


def open_frozen_sets(config: EvaluateConfig, world: World | None) -> FrozenSets:
    """The sets of a configuration. Raises UserError for files that cannot be used.

    world: the world of the prompts, or None if they are of no world.
    """
    sets: dict[str, FrozenSet] = {}
    left_out: dict[str, str] = {}
    probes = choices = texts = None
    if config.probes == AUTO and world is not None:
        probes = world.probes()
    elif config.probes not in (AUTO, NONE):
        probes = read_probes(ENGLISH if config.probes == "english" else config.probes)
    if probes is not None:
        require_checkable(probes, world)
        sets["probes"] = FrozenSet(name=probes.name, content_hash=probes.content_hash, n=len(probes.probes))
    else:
        left_out["probes"] = _missing_reason(config.probes, "probes")
    if config.choices == AUTO and world is not None:
        choices = world.choices()
    elif config.choices not in (AUTO, NONE):
        choices = read_choices(config.choices)
    if choices is not None:
        sets["choices"] = FrozenSet(name=choices.name, content_hash=choices.content_hash, n=len(choices.choices))
    else:
        left_out["choices"] = _missing_reason(config.choices, "choices")
    if config.text == AUTO and world is not None:
        texts = [Text(text) for text in world.text()]
        sets["text"] = FrozenSet(name=world.name, content_hash=_hash_texts(texts), n=len(texts))
    elif config.text not in (AUTO, NONE):
        texts = read_texts(config.text, config.strict)[0]
        sets["text"] = FrozenSet(path=config.text, content_hash=_hash_texts(texts), n=len(texts))
    else:
        left_out["text"] = _missing_reason(config.text, "text")
    tool_rows = read_tool_rows(config.tools, config.strict) if config.tools else []
    if config.tools:
        sets["tools"] = FrozenSet(path=config.tools, content_hash=_hash_rows(tool_rows), n=len(tool_rows))
    grounded = read_distinct_prompts(config, config.grounded, "--grounded") if config.grounded else []
    if config.grounded:
        sets["grounded"] = FrozenSet(path=config.grounded, content_hash=content_hash(grounded), n=len(grounded))
    refusals = read_refusals(config.refusals) if config.refusals else None
    if refusals is not None:
        if not is_refusal(config.refusal_text):
            raise UserError(f"--refusal_text {config.refusal_text!r}: this declines nothing; give a sentence that does")
        sets["refusals"] = FrozenSet(
            name=refusals.name, path=config.refusals, content_hash=refusals.content_hash, n=len(refusals.cases)
        )
    return FrozenSets(probes, choices, texts, tool_rows, grounded, refusals, sets, left_out)


def read_tool_rows(path: str, strict: bool) -> list[Demonstration]:
    """Every turn of the conversations in a file, once; rows that cannot be read are left out with a warning.

    UserError if none of them calls a tool.
    """
    source: Source[Demonstration] = Source(path, "demonstrations", strict=strict)
    rows = {row.prompt.key: row for row in every_turn(source)}
    if summary := source.refused.summary():
        log.warning("%s:\n%s", path, summary)
    if not any(row.tool_calls for row in rows.values()):
        raise UserError(f"--tools {path}: no answer there calls a tool; docs/data.md says how rows hold calls")
    return list(rows.values())


def _hash_rows(rows: Sequence[Demonstration]) -> str:
    contents = sorted(
        json.dumps([[turn.values for turn in row.prompt.messages], row.prompt.tools, row.response, row.tool_calls])
        for row in rows
    )
    return hashlib.sha256("\n".join(contents).encode()).hexdigest()


def _hash_texts(texts: Sequence[Text]) -> str:
    contents = json.dumps([text.text for text in texts], ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(contents.encode()).hexdigest()


def _missing_reason(choice: str, flag: str) -> str:
    return f"--{flag} none" if choice == NONE else f"{NO_WORLD} --{flag}"
