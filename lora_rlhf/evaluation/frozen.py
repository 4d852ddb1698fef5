"""The frozen sets beside the prompts: probes, multiple-choice questions and held-out text."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from lora_rlhf.data.encode import EncodedPrompt, encode_prompts
from lora_rlhf.data.schema import Text
from lora_rlhf.data.sources import read_texts
from lora_rlhf.evaluation.config import EvaluateConfig
from lora_rlhf.evaluation.report_model import FrozenSet
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.probes.bins import require_checkable
from lora_rlhf.probes.sets import ENGLISH, ChoiceSet, ProbeSet, World, read_choices, read_probes
from lora_rlhf.system.errors import UserError

AUTO, NONE = "auto", "none"
NO_WORLD = "the prompts are not the tiny world's, so give a file with"


@dataclass(frozen=True)
class FrozenSets:
    """The frozen sets. `sets`: their entries in the report; `left_out`: why the others are missing."""

    probes: ProbeSet | None
    choices: ChoiceSet | None
    texts: Sequence[Text] | None
    sets: dict[str, FrozenSet]
    left_out: dict[str, str]

    def encode_probes(self, model: SharedModel, max_prompt_tokens: int) -> list[EncodedPrompt]:
        """Every probe's ids. Raises UserError if one cannot be encoded, because a bin needs all of its cases."""
        if self.probes is None:
            return []
        prompts = [probe.prompt for probe in self.probes.probes]
        encoded, refused_rows = encode_prompts(model.tokenizer, prompts, max_prompt_tokens)
        if refused_rows.count or refused_rows.truncated_prompts:
            raise UserError(
                f"probes {self.probes.name}: {refused_rows.count} refused and {refused_rows.truncated_prompts} "
                f"truncated at max_prompt_tokens {max_prompt_tokens}: raise it, or give --probes none"
            )
        return encoded


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
    return FrozenSets(probes, choices, texts, sets, left_out)


def _hash_texts(texts: Sequence[Text]) -> str:
    contents = json.dumps([text.text for text in texts], ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(contents.encode()).hexdigest()


def _missing_reason(choice: str, flag: str) -> str:
    return f"--{flag} none" if choice == NONE else f"{NO_WORLD} --{flag}"
