"""The prompts of an evaluation: read once, distinct, hashed by content, and locked against change where asked."""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lora_rlhf.data.encode import EncodedPrompt, encode_prompts
from lora_rlhf.data.refusals import counted
from lora_rlhf.data.schema import Prompt
from lora_rlhf.data.sources import read_prompts
from lora_rlhf.evaluation.config import EvaluateConfig
from lora_rlhf.evaluation.report_model import PromptSet
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
    prompts, refused = read_prompts(path, config.strict, config.format, config.columns, has_flags=True)
    if summary := refused.summary():
        log.warning("%s:\n%s", path, summary)
    first: dict[str, Prompt] = {}
    for prompt in prompts:
        first.setdefault(prompt.key, prompt)
    if num_repeats := len(prompts) - len(first):
        log.warning("%s: %s left out that came before in it", path, counted(num_repeats, "prompt"))
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
    selection = read_distinct(config, config.selection_prompts, "--selection_prompts")
    reported = {prompt.key for prompt in prompts}
    if shared := sum(prompt.key in reported for prompt in selection):
        raise UserError(
            f"{config.selection_prompts}: {config.prompts} holds {counted(shared, 'prompt')} of it too; a temperature "
            "chosen on the prompts that it is reported on would look better than it is. Give other prompts"
        )
    return selection


def encode(
    config: EvaluateConfig, model: SharedModel, prompts: Sequence[Prompt], prompt_set: PromptSet
) -> tuple[list[EncodedPrompt], PromptSet]:
    """The prompts' ids, and their set with how many were used, refused and truncated."""
    encoded, refused = encode_prompts(model.tokenizer, prompts, config.max_prompt_tokens)
    if summary := refused.summary():
        log.warning("%s", summary)
    if len(encoded) < FEWEST:
        raise UserError(
            f"{counted(len(encoded), 'prompt')} left at max_prompt_tokens {config.max_prompt_tokens}, {FEWEST} are "
            "needed: raise it"
        )
    used, refused_rows, truncated = len(encoded), refused.count, refused.truncated_prompts
    return encoded, replace(prompt_set, used=used, refused=refused_rows, truncated=truncated)


def content_hash(prompts: Sequence[Prompt]) -> str:
    """sha256 over the prompts' messages as canonical JSON, sorted: neither spelling nor order of a file matter."""
    rows = sorted(
        json.dumps([[m.role, m.content] for m in prompt.messages], ensure_ascii=False, separators=(",", ":"))
        for prompt in prompts
    )
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def describe(path: str, prompts: Sequence[Prompt]) -> PromptSet:
    """What the report says of a set of prompts: its path, the file's hash (None for the hub's) and the content's."""
    return PromptSet(path=path, sha256=data_hash(path), content_hash=content_hash(prompts))


def keep_lock(prompts: PromptSet, write: bool) -> None:
    """UserError where PATH.lock stands beside the prompts with another content hash; `write` makes that file."""
    assert prompts.path is not None  # it was read
    lock = Path(prompts.path + LOCK)
    if lock.is_file():
        locked = read_object(lock, "delete that lock, or restore it").get("content_hash")
        if locked != prompts.content_hash:
            raise UserError(
                f"{prompts.path}: these prompts are not the ones that {lock} locks (content "
                f"{prompts.content_hash[:16]} now, {str(locked)[:16]} then), so figures would not compare with earlier "
                f"reports. Restore the file; or, for a new benchmark, give it a new name or delete {lock}"
            )
    elif write:
        if not Path(prompts.path).exists():
            raise UserError(f"{prompts.path}: --lock writes a file beside the prompts, and these are not local")
        write_json(lock, {"content_hash": prompts.content_hash})
