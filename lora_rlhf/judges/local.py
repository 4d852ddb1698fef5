"""A chat model from a folder or the hub as a judge, which is loaded for its first question and freed by `close`."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from lora_rlhf.configs.judge import JudgeModelConfig
from lora_rlhf.data.refusals import BadRow
from lora_rlhf.data.schema import Prompt
from lora_rlhf.data.template import decode_response, render_verbatim, stop_ids
from lora_rlhf.judges.asking import Read, Reply
from lora_rlhf.model.chat import ChatModel, hash_model
from lora_rlhf.system.untrusted import quote


class LocalModel:
    """Asks a model on this machine with greedy decoding. It is loaded for the first question that is not cached."""

    def __init__(self, config: JudgeModelConfig, device: str, trust_remote_code: bool) -> None:
        """device, trust_remote_code: as in `StageConfig`."""
        assert config.judge_model is not None
        self._config = config
        self._name = config.judge_model
        self._device = device
        self._trust_remote_code = trust_remote_code
        self._model: ChatModel | None = None

    def identity(self) -> dict[str, Any]:
        return {"model": self._name, "weights": self._weights_hash, "max_tokens": self._config.judge_max_tokens}

    def price(self, tokens_in: int, tokens_out: int) -> float | None:
        """Always None: local calls have no price."""
        return None

    def ask(self, questions: Sequence[str], read: Read, on_reply: Callable[[int, Reply], None]) -> None:
        """See `asking.JudgeModel`. A question that exceeds the model's context is a failure."""
        if self._model is None:
            self._model = ChatModel(self._name, self._device, self._trust_remote_code)
        model, max_new_tokens = self._model, self._config.judge_max_tokens
        tokenizer, prompts = model.tokenizer, []
        numbers = []  # the question numbers of `prompts`
        for number, question in enumerate(questions):
            try:
                ids = render_verbatim(tokenizer, Prompt.of(question))
            except BadRow as reason:
                on_reply(number, Reply(None, "its chat template refuses the question", str(reason), calls=0))
                continue
            if model.max_context_tokens is not None and len(ids) + max_new_tokens > model.max_context_tokens:
                detail = f"{len(ids)} tokens and {max_new_tokens} to write, context {model.max_context_tokens}"
                on_reply(number, Reply(None, "longer than its context", detail, calls=0))
                continue
            prompts.append(ids)
            numbers.append(number)
        stop_token_ids = stop_ids(tokenizer)

        def read_answer(index: int, ids: list[int]) -> None:
            """Reads the verdict in the generated ids for `prompts[index]`."""
            text = decode_response(tokenizer, ids)
            is_finished = len(ids) < max_new_tokens or ids[-1] in stop_token_ids
            verdict = read(text) if is_finished else None
            fault = "no verdict in its last line" if is_finished else "cut off by --judge_max_tokens"
            tokens = len(prompts[index]), len(ids)
            if verdict is None:
                on_reply(numbers[index], Reply(None, fault, quote(text[-200:]), 1, *tokens))
            else:
                on_reply(numbers[index], Reply(verdict, "", "", 1, *tokens))

        model.generate_greedy(prompts, max_new_tokens, stop_token_ids, self._config.judge_batch_size, read_answer)

    def close(self) -> None:
        if self._model is not None:
            self._model.free()
            self._model = None

    @cached_property
    def _weights_hash(self) -> str:
        return hash_model(self._name)
