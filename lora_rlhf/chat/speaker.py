"""Who answers: the model of a run, a 4-bit base with an adapter, or that of an exported folder."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from lora_rlhf.chat.config import ChatConfig
from lora_rlhf.configs.catalogue import BASE, BY_ROLE, PPO, WRITERS
from lora_rlhf.data.encode import encode_prompt
from lora_rlhf.data.refusals import RefusedRows
from lora_rlhf.data.schema import Prompt
from lora_rlhf.data.template import decode_response, stop_ids
from lora_rlhf.model.base import BaseSpec, load_base
from lora_rlhf.model.dense import keep_dense
from lora_rlhf.model.generate import stream_mixed
from lora_rlhf.model.open import open_base
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.runs.folder import find_stage, has_stage
from lora_rlhf.system.errors import UserError
from lora_rlhf.system.untrusted import read_object

HALF = "\ufffd"  # what a decoder writes for a character whose last bytes are still to come


class Speaker(NamedTuple):
    """A model, the role that answers, and how many tokens it may read and write."""

    model: SharedModel
    role: str
    max_prompt_tokens: int
    max_response_tokens: int

    def encode(self, prompt: Prompt) -> tuple[list[int], bool]:
        """A prompt's ids, and whether it has lost its beginning, at a message boundary, as in training.

        UserError for a conversation that the chat template refuses.
        """
        refused = RefusedRows()
        ids = encode_prompt(self.model.tokenizer, prompt, self.max_prompt_tokens, refused)
        if ids is None:
            raise UserError(refused.summary())
        return ids, bool(refused.truncated_prompts)

    def answer(self, ids: list[int], temperature: float, seed: int, stop: Callable[[], bool]) -> Iterator[str]:
        """The answer's text piece by piece, until its end or until `stop` says so."""
        tokenizer = self.model.tokenizer
        steps = stream_mixed(
            self.model,
            [self.role],
            [ids],
            [seed],
            max_new_tokens=self.max_response_tokens,
            temperature=temperature,
            stop_ids=stop_ids(tokenizer),
            stop=stop,
        )
        return pieces(
            (token for (token,) in steps if token is not None), lambda drawn: decode_response(tokenizer, drawn)
        )


def pieces(tokens: Iterator[int], decode: Callable[[list[int]], str]) -> Iterator[str]:
    """The text of tokens as they come. A piece is held back while its last character lacks bytes."""
    drawn: list[int] = []
    shown = text = ""
    for token in tokens:
        drawn.append(token)
        text = decode(drawn)
        if text.startswith(shown) and not text.endswith(HALF):
            yield text[len(shown) :]
            shown = text
    yield text[len(shown) :] if text.startswith(shown) else f"\n{text}"


def open_speaker(config: ChatConfig) -> Speaker:
    """UserError for a folder that is neither a run nor a model that writes text, and for a role that it has not."""
    folder = Path(config.folder)
    if os.path.isfile(folder / "config.json"):
        model, role = _open_export(config, folder), BASE
    else:
        model, role = _open_run(config, folder)
    context: int = getattr(model.config, "max_position_embeddings", None) or 2**15
    most = min(config.max_response_tokens, context // 2)
    return Speaker(model, role, context - most, most)


def _open_export(config: ChatConfig, folder: Path) -> SharedModel:
    if config.role not in ("auto", PPO.role):
        raise UserError(f"{folder} is an exported model, which has no role {config.role!r}; leave --role out")
    settings = read_object(folder / "config.json", "give a folder that `lora-rlhf export` made")
    if any(str(name).endswith("ForSequenceClassification") for name in settings.get("architectures") or []):
        raise UserError(f"{folder} holds a reward model, which scores and does not write; chat with a policy")
    spec = BaseSpec(str(folder), "none", trust_remote_code=config.trust_remote_code)
    return SharedModel(load_base(spec, config.device))


def _open_run(config: ChatConfig, folder: Path) -> tuple[SharedModel, str]:
    finished = [stage for stage in WRITERS if has_stage(folder, stage.name)]
    if not finished:
        names = " or ".join(stage.name for stage in WRITERS)
        raise UserError(
            f"{folder}: neither a run with a finished stage that writes ({names}) nor a merged export (a folder with a "
            "config.json); an adapter alone and a GGUF file are for PEFT, vLLM, llama.cpp and Ollama"
        )
    role = finished[-1].role if config.role == "auto" else config.role
    name = finished[0].name if role == BASE else BY_ROLE[role].name
    parent = find_stage(folder / name, name)
    model = open_base(parent.manifest["base"], config.device, trust_remote_code=config.trust_remote_code)
    keep_dense(model.causal, config.dequantize)
    if role != BASE:
        model.load_role(role, parent.adapter)
    return model, role
