"""A finished run, or an exported model, in memory: its roles on one base, to generate and to score with."""

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import torch
from tqdm import tqdm

from lora_rlhf.configs.catalogue import BASE, BY_ROLE, PPO, REWARD, STAGES, WRITERS
from lora_rlhf.data.batches import response_batch
from lora_rlhf.data.encode import encode_prompt
from lora_rlhf.data.refusals import RefusedRows
from lora_rlhf.data.schema import Message, Prompt
from lora_rlhf.data.template import decode_response, pad_id, render_response, stop_ids
from lora_rlhf.model.base import BaseSpec, load_base
from lora_rlhf.model.dense import Dequantize, keep_dense_copies
from lora_rlhf.model.drawing import Response
from lora_rlhf.model.engines import usual_engine
from lora_rlhf.model.forward import Sequences, apply_in_micro_batches, response_scores
from lora_rlhf.model.generate import draw_seeds, generate_mixed, stream_mixed
from lora_rlhf.model.memory import free_memory
from lora_rlhf.model.open import open_base
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.runs.folder import find_stage, has_stage
from lora_rlhf.system.errors import UserError
from lora_rlhf.system.untrusted import read_object

INCOMPLETE_CHARACTER = "\ufffd"  # a decoder writes it for a character that lacks bytes
DEFAULT_CONTEXT_TOKENS = 2**15  # of a model whose config does not name its context

# A user's message, or messages with "role" and "content" that end with one.
PromptLike = str | Sequence[Mapping[str, str]]


class LoadedRun:
    """One base with the roles of a run; an adapter is loaded when its role is first used.

    folder: of the run or the export. role: who answers unless a call names another role. The end of a `with` block, or
    `close`, frees its memory.
    """

    def __init__(self, folder: Path, model: SharedModel, role: str) -> None:
        self.folder, self.role = folder, role
        self._model: SharedModel | None = model

    def __enter__(self) -> "LoadedRun":
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Frees the base and all adapters."""
        self._model = None
        free_memory()

    @property
    def model(self) -> SharedModel:
        """The base in memory. RuntimeError after `close`."""
        if self._model is None:
            raise RuntimeError(f"{self.folder} was closed; load it again with load_run")
        return self._model

    @property
    def roles(self) -> tuple[str, ...]:
        """The base, and the roles of the finished stages."""
        return (BASE, *(stage.role for stage in STAGES if has_stage(self.folder, stage.name)))

    @property
    def max_context_tokens(self) -> int:
        """The most tokens that a prompt and its answer may have together."""
        return getattr(self.model.config, "max_position_embeddings", None) or DEFAULT_CONTEXT_TOKENS

    def generate(
        self,
        prompts: Sequence[PromptLike],
        *,
        role: str | None = None,
        temperature: float = 1.0,
        max_response_tokens: int = 256,
        seed: int = 0,
        batch_size: int = 32,
    ) -> list[Response]:
        """One answer to each prompt, in their order; the same seed and prompts give the same answers.

        prompts: texts, or lists of messages. temperature: 1 samples as training does, 0 takes the most probable token.
        A prompt that is too long for the context loses its beginning, as in training. batch_size: prompts at a
        time. UserError for a prompt that the chat template refuses, and for a role that the run does not have.
        """
        _require_list(prompts, "prompts")
        role = self._load_role(role or self.role)
        _require_writer(self.folder, role)
        max_tokens = min(max_response_tokens, self.max_context_tokens // 2)
        prompt_ids = [self.encode(_to_prompt(prompt), max_tokens)[0] for prompt in prompts]
        seeds = draw_seeds(torch.Generator().manual_seed(seed), len(prompt_ids), 1)
        answers: list[Response] = []
        engine = usual_engine(self.model, max(map(len, prompt_ids), default=0) + max_tokens)
        with tqdm(total=len(prompt_ids), desc="generate", unit="prompt", disable=len(prompt_ids) <= batch_size) as bar:
            for start in range(0, len(prompt_ids), batch_size):
                batch = slice(start, start + batch_size)
                response_groups = generate_mixed(
                    self.model,
                    [role] * len(prompt_ids[batch]),
                    prompt_ids[batch],
                    seeds[batch],
                    max_new_tokens=max_tokens,
                    temperature=temperature,
                    stop_ids=stop_ids(self.model.tokenizer),
                    batch_size=batch_size,
                    engine=engine,
                )
                for (response,) in response_groups:
                    text = decode_response(self.model.tokenizer, response.ids).strip()
                    answers.append(dataclasses.replace(response, text=text))
                bar.update(len(response_groups))
        return answers

    @torch.no_grad()
    def score(self, prompt: PromptLike, answers: Sequence[str | Response], *, batch_size: int = 32) -> list[float]:
        """The reward model's score of each answer to a prompt, as PPO computes it; higher is better.

        An answer of `generate` is scored with the tokens that were sampled, a text with those of the chat template.
        UserError if the run has no reward stage, and for an answer that does not fit the model's context.
        """
        _require_list(answers, "answers")
        role, scored_prompt, tokenizer = self._load_role(REWARD.role), _to_prompt(prompt), self.model.tokenizer
        responses = [
            answer
            if isinstance(answer, Response)
            else Response(render_response(tokenizer, scored_prompt, answer), True, answer)
            for answer in answers
        ]
        if not responses:
            return []
        longest = max(len(row.ids) for row in responses)
        if longest >= self.max_context_tokens:
            raise UserError(
                f"an answer has {longest} tokens; with its prompt it exceeds the context of {self.max_context_tokens}"
            )
        prompt_ids = [self.encode(scored_prompt, longest)[0]] * len(responses)
        batch = Sequences(*response_batch(prompt_ids, [row.ids for row in responses], pad_id(tokenizer))).to(
            self.model.device
        )
        with self.model.role(role):
            scores: list[float] = apply_in_micro_batches(
                lambda part: response_scores(self.model, part), batch, batch_size
            ).tolist()
        return scores

    def encode(self, prompt: Prompt, max_response_tokens: int) -> tuple[list[int], bool]:
        """A prompt's ids, and whether the prompt was too long and lost its first messages, as in training.

        UserError for a conversation that the chat template refuses.
        """
        refused = RefusedRows()
        ids = encode_prompt(self.model.tokenizer, prompt, self.max_context_tokens - max_response_tokens, refused)
        if ids is None:
            raise UserError(refused.summary())
        return ids, bool(refused.truncated_prompts)

    def stream_answer(
        self, ids: list[int], temperature: float, seed: int, max_response_tokens: int, stop: Callable[[], bool]
    ) -> Iterator[str]:
        """The answer to a prompt's ids in pieces of text, until its end or until `stop` returns True."""
        steps = stream_mixed(
            self.model,
            [self.role],
            [ids],
            [seed],
            max_new_tokens=max_response_tokens,
            temperature=temperature,
            stop_ids=stop_ids(self.model.tokenizer),
            stop=stop,
        )
        tokenizer = self.model.tokenizer
        tokens = (token for (token,) in steps if token is not None)
        return stream_text(tokens, lambda token_ids: decode_response(tokenizer, token_ids))

    def _load_role(self, role: str) -> str:
        """Loads the role's adapter if it is not in memory; returns the role."""
        if role in self.model.roles:
            return role
        if role not in BY_ROLE:
            raise UserError(f"{self.folder}: no role {role!r}; there are: {', '.join(self.roles)}")
        name = BY_ROLE[role].name
        parent = find_stage(self.folder / name, name)
        if parent.manifest["base"]["source_hash"] != self.model.base.source_hash:
            raise UserError(f"{parent.folder} was trained on another base than {self.model.base.spec.name!r} as loaded")
        self.model.load_role(role, parent.adapter)
        self.model.set_score_offset(role, parent.score_offset)
        return role


def load_run(
    folder: str | Path,
    role: str | None = None,
    device: str = "auto",
    *,
    dequantize: Dequantize = "auto",
    trust_remote_code: bool = False,
) -> LoadedRun:
    """Opens a finished run, or a merged export of one, to generate and score with.

    role: who answers: base, or the role of a stage that writes; by default that of the latest stage. device: auto, cpu,
    cuda or cuda:N. dequantize: whether a run's 4-bit base is also stored dequantised (more memory, less time); auto: on
    a CPU with memory to spare. UserError for a folder that is neither a run nor a model that writes text, and for a
    role that it does not have.
    """
    folder = Path(folder)
    if os.path.isfile(folder / "config.json"):
        return LoadedRun(folder, _open_export(folder, role, device, trust_remote_code), BASE)
    finished_stages = [stage for stage in WRITERS if has_stage(folder, stage.name)]
    if not finished_stages:
        names = " or ".join(stage.name for stage in WRITERS)
        raise UserError(
            f"{folder}: neither a run with a finished stage that writes ({names}) nor a merged export (a folder with a "
            "config.json); an adapter alone and a GGUF file are for PEFT, vLLM, llama.cpp and Ollama"
        )
    role = role or finished_stages[-1].role
    _require_writer(folder, role)
    name = BY_ROLE[role].name if role in BY_ROLE else finished_stages[0].name
    parent = find_stage(folder / name, name)
    model = open_base(parent.manifest["base"], device, trust_remote_code=trust_remote_code)
    keep_dense_copies(model.causal, dequantize)
    run = LoadedRun(folder, model, role)
    run._load_role(role)
    return run


def _open_export(folder: Path, role: str | None, device: str, trust_remote_code: bool) -> SharedModel:
    """Loads a merged export as a base. UserError for a role, and for an exported reward model."""
    if role not in (None, PPO.role):
        raise UserError(f"{folder} is an exported model, which has no role {role!r}; leave --role out")
    settings = read_object(folder / "config.json", "give a folder that `lora-rlhf export` made")
    if any(str(name).endswith("ForSequenceClassification") for name in settings.get("architectures") or []):
        raise UserError(f"{folder} holds a reward model, which scores and does not write; chat with a policy")
    return SharedModel(load_base(BaseSpec(str(folder), "none", trust_remote_code=trust_remote_code), device))


def _to_prompt(prompt: PromptLike) -> Prompt:
    if isinstance(prompt, str):
        return Prompt.of(prompt)
    return Prompt(tuple(Message(message.get("role", ""), message.get("content", "")) for message in prompt))


def _require_writer(folder: Path, role: str) -> None:
    if role in BY_ROLE and BY_ROLE[role].scores:
        raise UserError(f"{folder}: role {role!r} scores and does not write; choose another one to answer")


def _require_list(values: object, name: str) -> None:
    if isinstance(values, str):
        raise UserError(f"{name} is one text; give a list, also of one")


def stream_text(tokens: Iterator[int], decode: Callable[[list[int]], str]) -> Iterator[str]:
    """The text of tokens in pieces, as they come. A piece waits while its last character lacks bytes."""
    token_ids: list[int] = []
    sent_text = text = ""
    for token in tokens:
        token_ids.append(token)
        text = decode(token_ids)
        if text.startswith(sent_text) and not text.endswith(INCOMPLETE_CHARACTER):
            yield text[len(sent_text) :]
            sent_text = text
    yield text[len(sent_text) :] if text.startswith(sent_text) else f"\n{text}"
