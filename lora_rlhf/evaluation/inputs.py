"""The prompts of an evaluation: read once, without repeats, with a hash of their content that can be locked."""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lora_rlhf.data.encode import EncodedPrompt, encode_prompts
from lora_rlhf.data.refusals import pluralize
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

FEWEST_PROMPTS = 2  # prompts: one has no interval
LOCK_SUFFIX = ".lock"


def read_distinct_prompts(config: EvaluateConfig, path: str, flag: str) -> list[Prompt]:
    """The distinct prompts of a file. Raises UserError if they are too few for an interval."""
    prompts, refused_rows = read_prompts(path, config.strict, config.format, config.columns, has_flags=True)
    if summary := refused_rows.summary():
        log.warning("%s:\n%s", path, summary)
    prompt_by_key: dict[str, Prompt] = {}
    for prompt in prompts:
        prompt_by_key.setdefault(prompt.key, prompt)
    if num_repeats := len(prompts) - len(prompt_by_key):
        log.warning("%s: %s left out that came before in it", path, pluralize(num_repeats, "prompt"))
    if len(prompt_by_key) < FEWEST_PROMPTS:
        raise UserError(
            f"{path}: {pluralize(len(prompt_by_key), 'distinct prompt')}, {flag} needs at least {FEWEST_PROMPTS} for "
            "an interval"
        )
    return list(prompt_by_key.values())


def read_selection_prompts(config: EvaluateConfig, prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts on which temperatures are chosen. Raises UserError if one is also a reported prompt."""
    if config.selection_prompts is None:
        return []
    if not config.temperatures:
        raise UserError("evaluate: temperatures is empty, so no best one can be chosen on the selection prompts")
    selection = read_distinct_prompts(config, config.selection_prompts, "--selection_prompts")
    reported_keys = {prompt.key for prompt in prompts}
    if num_shared := sum(prompt.key in reported_keys for prompt in selection):
        raise UserError(
            f"{config.selection_prompts}: {config.prompts} holds {pluralize(num_shared, 'prompt')} of it too; a "
            "temperature chosen on the prompts that it is reported on would look better than it is. Give other prompts"
        )
    return selection


def encode_prompt_set(
    config: EvaluateConfig, model: SharedModel, prompts: Sequence[Prompt], prompt_set: PromptSet
) -> tuple[list[EncodedPrompt], PromptSet]:
    """The prompts' ids, and their set with the numbers of used, refused and truncated prompts."""
    encoded, refused_rows = encode_prompts(model.tokenizer, prompts, config.max_prompt_tokens)
    if summary := refused_rows.summary():
        log.warning("%s", summary)
    if len(encoded) < FEWEST_PROMPTS:
        raise UserError(
            f"{pluralize(len(encoded), 'prompt')} left at max_prompt_tokens {config.max_prompt_tokens}, "
            f"{FEWEST_PROMPTS} are needed: raise it"
        )
    refused, truncated = refused_rows.count, refused_rows.truncated_prompts
    return encoded, replace(prompt_set, used=len(encoded), refused=refused, truncated=truncated)


def content_hash(prompts: Sequence[Prompt]) -> str:
    """sha256 over the prompts' messages as sorted canonical JSON: format and order of the file do not matter."""
    rows = sorted(
        json.dumps(
            [[message.role, message.text] for message in prompt.messages], ensure_ascii=False, separators=(",", ":")
        )
        for prompt in prompts
    )
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def describe_prompt_set(path: str, prompts: Sequence[Prompt]) -> PromptSet:
    """The report's entry for a set of prompts: its path, the file's hash (None on the hub) and the content's hash."""
    return PromptSet(path=path, sha256=data_hash(path), content_hash=content_hash(prompts))


def check_lock(prompts: PromptSet, write: bool) -> None:
    """Raises UserError if PATH.lock exists and has another content hash; writes that file if `write`."""
    assert prompts.path is not None  # it was read
    lock_path = Path(prompts.path + LOCK_SUFFIX)
    if lock_path.is_file():
        locked_hash = read_object(lock_path, "delete that lock, or restore it").get("content_hash")
        if locked_hash != prompts.content_hash:
            raise UserError(
                f"{prompts.path}: these prompts are not the ones that {lock_path} locks (content "
                f"{prompts.content_hash[:16]} now, {str(locked_hash)[:16]} then), so figures would not compare with "
                f"earlier reports. Restore the file; or, for a new benchmark, give it a new name or delete {lock_path}"
            )
    elif write:
        if not Path(prompts.path).exists():
            raise UserError(f"{prompts.path}: --lock writes a file beside the prompts, and these are not local")
        write_json(lock_path, {"content_hash": prompts.content_hash})
