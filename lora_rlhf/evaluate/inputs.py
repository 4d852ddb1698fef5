"""The prompts of an evaluation: read once, distinct, hashed by content, and locked against change where asked."""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_rlhf.data.encode import EncodedPrompt, encode_prompts
from lora_rlhf.data.refusals import counted
from lora_rlhf.data.schema import Prompt
from lora_rlhf.data.sources import read_prompts
from lora_rlhf.evaluate.config import EvaluateConfig
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.runs.folder import data_hash
from lora_rlhf.system.disk import write_json
from lora_rlhf.system.errors import UserError
from lora_rlhf.system.untrusted import read_object

log = logging.getLogger("lora_rlhf")

FEWEST = 2  # prompts: one has no interval
LOCK = ".lock"


def read_distinct(config: EvaluateConfig, path: str, flag: str) -> list[Prompt]:
    """The distinct prompts of a file: a prompt that comes twice is no second piece of evidence."""
    prompts, refused = read_prompts(path, config.strict, config.format)
    if summary := refused.summary():
        log.warning("%s:\n%s", path, summary)
    first: dict[str, Prompt] = {}
    for prompt in prompts:
        first.setdefault(prompt.key, prompt)
    if again := len(prompts) - len(first):
        log.warning("%s: %s left out that came before in it", path, counted(again, "prompt"))
    if len(first) < FEWEST:
        raise UserError(
            f"{path}: {counted(len(first), 'distinct prompt')}, {flag} needs at least {FEWEST} for an interval"
        )
    return list(first.values())


def read_selection(config: EvaluateConfig, prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts that temperatures are chosen on; none of them may be among those that are reported."""
    if config.selection_prompts is None:
        return []
    if not config.temperatures:
        raise UserError("evaluate: temperatures is empty, so no best one can be chosen on the selection prompts")
    others = read_distinct(config, config.selection_prompts, "--selection_prompts")
    reported = {prompt.key for prompt in prompts}
    if shared := sum(prompt.key in reported for prompt in others):
        raise UserError(
            f"{config.selection_prompts}: {config.prompts} holds {counted(shared, 'prompt')} of it too; a temperature "
            "chosen on the prompts that it is reported on would look better than it is. Give other prompts"
        )
    return others


def encode(
    config: EvaluateConfig, model: SharedModel, prompts: Sequence[Prompt]
) -> tuple[list[EncodedPrompt], dict[str, int]]:
    """The prompts' ids, and how many were used, refused and truncated."""
    encoded, refused = encode_prompts(model.tokenizer, prompts, config.max_prompt_tokens)
    if summary := refused.summary():
        log.warning("%s", summary)
    if len(encoded) < FEWEST:
        raise UserError(
            f"{counted(len(encoded), 'prompt')} left at max_prompt_tokens {config.max_prompt_tokens}, {FEWEST} are "
            "needed: raise it"
        )
    return encoded, {"used": len(encoded), "refused": refused.count, "truncated": refused.truncated_prompts}


def content_hash(prompts: Sequence[Prompt]) -> str:
    """sha256 over the prompts' messages as canonical JSON, sorted: neither spelling nor order of a file matter."""
    rows = sorted(_canonical([[m.role, m.content] for m in prompt.messages]) for prompt in prompts)
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def describe(path: str, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """What the report says of a set of prompts: its place, the file's hash (None for the hub's) and the content's."""
    return {"path": path, "sha256": data_hash(path), "content_hash": content_hash(prompts)}


def keep_lock(path: str, found: str, write: bool) -> None:
    """UserError where PATH.lock stands beside the prompts with another content hash; `write` makes that file."""
    place = Path(path + LOCK)
    if place.is_file():
        locked = read_object(place, "delete that lock, or restore it").get("content_hash")
        if locked != found:
            raise UserError(
                f"{path}: these prompts are not the ones that {place} locks (content {found[:16]} now, "
                f"{str(locked)[:16]} then), so figures would not compare with earlier reports. Restore the file; or, "
                f"for a new benchmark, give it a new name or delete {place}"
            )
    elif write:
        if not Path(path).exists():
            raise UserError(f"{path}: --lock writes a file beside the prompts, and these are not local")
        write_json(place, {"content_hash": found})


def _canonical(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
