"""A role of the shared model as a model of EleutherAI's harness. Imports `lm_eval`, an optional package."""

from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from lora_rlhf.data.batches import pad_left, pad_right
from lora_rlhf.data.template import bos_before_text, encode_text, pad_id, stop_ids
from lora_rlhf.model.forward import Sequences, apply_in_micro_batches, best_ids_and_logprobs
from lora_rlhf.model.generate import generate
from lora_rlhf.model.shared import SharedModel

CONTEXT = 2048  # tokens, if the model's config has no limit
NEW_TOKENS = 256  # of a generated answer, if the task has no limit


class HarnessModel(TemplateLM):
    """Answers the harness's three kinds of requests with one role; texts are plain, as the harness writes them."""

    def __init__(self, model: SharedModel, role: str, batch_size: int) -> None:
        super().__init__()
        self.tokenizer = model.tokenizer
        self._model, self._role, self._batch_size = model, role, batch_size
        self._max_context_tokens = getattr(model.config, "max_position_embeddings", None) or CONTEXT

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without a context."""
        return next(iter(bos_before_text(self.tokenizer)), self.eot_token_id)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        before = [] if add_special_tokens is False else bos_before_text(self.tokenizer)
        return [*before, *encode_text(self.tokenizer, string)]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """Returns (log-probability of the continuation, whether it is the greedy one) of each request.

        A context that is too long loses its beginning.
        """
        if not requests:
            return []
        continuations = [continuation for _, _, continuation in requests]
        contexts = [
            context[-max(1, self._max_context_tokens - len(continuation)) :] for _, context, continuation in requests
        ]
        pad = pad_id(self.tokenizer)
        padded_contexts, padded_continuations = pad_left(contexts, pad), pad_right(continuations, pad)
        batch = Sequences(*padded_contexts, *padded_continuations).to(self._model.device)
        with torch.no_grad(), self._model.role(self._role):
            columns = apply_in_micro_batches(
                lambda part: torch.stack(best_ids_and_logprobs(self._model, part), -1), batch, self._batch_size
            )
        best_ids, logprobs = columns.unbind(-1)
        is_greedy = (best_ids == batch.response_ids) | ~batch.response_mask
        sums = logprobs.double().sum(dim=1).tolist()
        return list(zip(sums, is_greedy.all(dim=1).tolist(), strict=True))

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probabilities of whole texts, in windows of the model's context."""
        sums = []
        for request in requests:
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            windows = get_rolling_token_windows(ids, self.prefix_token_id, self._max_context_tokens - 1, 1)
            window_requests = [(None, *make_disjoint_window(window)) for window in windows]
            sums.append(sum(value for value, _ in self._loglikelihood_tokens(window_requests)))
        return sums

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Continuations up to each request's first stop text; greedy unless the task samples."""
        answers = []
        for request in requests:
            context, task_settings = request.args
            settings = normalize_gen_kwargs(task_settings, NEW_TOKENS)
            max_new_tokens = min(int(settings["max_gen_toks"]), self._max_context_tokens - 1)
            with self._model.role(self._role):
                ((response,),) = generate(
                    self._model,
                    [self.tok_encode(context)[-(self._max_context_tokens - max_new_tokens) :]],
                    max_new_tokens=max_new_tokens,
                    temperature=float(settings["temperature"]) if settings["do_sample"] else 0.0,
                    stop_ids=stop_ids(self.tokenizer),
                    generator=torch.Generator().manual_seed(0),
                    batch_size=self._batch_size,
                )
            text = self.tokenizer.decode(response.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            answers.append(postprocess_generated_text(text, settings["until"], None))
        return answers
