"""What is asked of the runs: answers of their stages, and what is known of each answer."""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass

import torch

from lora_rlhf.data.batches import pad_left, pad_right
from lora_rlhf.data.encode import EncodedPrompt, encode_prompt
from lora_rlhf.data.refusals import RefusedRows
from lora_rlhf.data.schema import Prompt
from lora_rlhf.data.template import decode_response, pad_id, render_response, stop_ids
from lora_rlhf.model.forward import Sequences, mixed_logprobs, response_scores
from lora_rlhf.model.generate import stream_mixed
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.system.errors import UserError
from lora_rlhf_demo.memory import Memory, Shown
from lora_rlhf_demo.requests import (
    Answered,
    Ask,
    ColumnAnswer,
    Event,
    Loading,
    Open,
    Opened,
    Partial,
    Score,
    Scored,
    Token,
)

WARM_TOKENS = 4
SHOW_EVERY = 0.04  # seconds between two states of an answer: a browser shows no more, and decoding costs time


@dataclass(frozen=True)
class Limits:
    """What a request may ask for at most."""

    max_prompt_tokens: int = 1024
    max_new_tokens: int = 512
    columns: int = 6


@dataclass(frozen=True)
class _Cast:
    """Who answers, column by column: the role, and the role that its run's policy was held to."""

    roles: tuple[str, ...]
    references: tuple[str | None, ...]

    def only(self, columns: Sequence[int]) -> "_Cast":
        """Some of the columns."""
        return _Cast(tuple(self.roles[place] for place in columns), tuple(self.references[place] for place in columns))


class Desk:
    """Answers requests, one at a time. Not thread-safe: one thread works at it (`host`)."""

    def __init__(self, memory: Memory, limits: Limits) -> None:
        self.memory, self.limits = memory, limits

    def open(self, request: Open) -> Iterator[Event]:
        """Has a run ready: loaded, and its first pass, which is slow, behind it. UserError if it cannot be shown."""
        shown = self.memory.held(request.run)
        if shown is None:
            shown = yield from self._run(request.run)
            self._warm_up(shown)
        others = self.memory.others(request.run)
        yield Opened(tuple(shown.roles), shown.reward is not None, others, self._longest_answer)

    def answer(self, ask: Ask, stopped: Callable[[], bool]) -> Iterator[Event]:
        """Streams one answer of every column, all drawn together; ends with what is known of each."""
        if not 1 <= len(ask.columns) <= self.limits.columns:
            raise UserError(f"{len(ask.columns)} columns: choose 1 to {self.limits.columns}")
        shown, cast = yield from self._cast(ask)
        longest, refused = min(ask.settings.max_new_tokens, self._longest_answer), RefusedRows()
        prompts = [self._encode(Prompt(column.messages), longest, refused) for column in ask.columns]
        ids: list[list[int]] = [[] for _ in prompts]
        seconds, started, shown_at = [0.0] * len(ids), time.monotonic(), 0.0
        steps = stream_mixed(
            self._model,
            cast.roles,
            [prompt.prompt_ids for prompt in prompts],
            [ask.settings.seed + column.seed for column in ask.columns],
            max_new_tokens=longest,
            temperature=ask.settings.temperature,
            stop_ids=stop_ids(self._model.tokenizer),
            stop=stopped,
        )
        for step in steps:
            now = time.monotonic()
            for column, token in enumerate(step):
                if token is not None:
                    ids[column].append(token)
                    seconds[column] = now - started
            if now - shown_at >= SHOW_EVERY:
                shown_at = now
                yield Partial(tuple(self._text(own) for own in ids), tuple(map(len, ids)))
        yield Answered(self._known(shown, cast, prompts, ids, seconds), stopped(), refused.truncated_prompts > 0)

    def score(self, score: Score) -> Iterator[Event]:
        """The reward model's score of each response. UserError where the run has no reward model."""
        shown, prompt = (yield from self._run(score.run)), Prompt(score.messages)
        if shown.reward is None:
            raise UserError(f"run {score.run!r} has no finished reward stage; `lora-rlhf reward` makes one")
        longest = self._longest_answer
        encoded = self._encode(prompt, longest, RefusedRows())
        ids = [render_response(self._model.tokenizer, prompt, text)[:longest] for text in score.responses]
        yield Scored(tuple(self._scores(shown, self._sequences([encoded] * len(ids), ids))))

    def close(self) -> None:
        """Lets go of the model."""
        self.memory.close()

    def free(self) -> None:
        """After memory ran out."""
        self.memory.free()

    @property
    def _model(self) -> SharedModel:
        return self.memory.model

    def _run(self, run: str) -> Generator[Event, None, Shown]:
        shown = self.memory.held(run)
        if shown is None:
            yield Loading(run)
            shown = self.memory.load(run)
        return shown

    def _cast(self, ask: Ask) -> Generator[Event, None, tuple[Shown, _Cast]]:
        """The run that was asked, and who plays each column. UserError for a stage that is not there."""
        named = [column.stage.rpartition(":") for column in ask.columns]
        runs: dict[str, Shown] = {}
        for run in dict.fromkeys([*(run or ask.run for run, _, _ in named), ask.run]):
            runs[run] = yield from self._run(run)
        if any(self.memory.held(run) is None for run in runs):
            raise UserError("these columns are of runs on different bases, and only one base is in memory at a time")
        shown = [runs[run or ask.run] for run, _, _ in named]
        for each, (_, _, stage), column in zip(shown, named, ask.columns, strict=True):
            if stage not in each.roles:
                raise UserError(f"column {column.stage[:80]!r}: no such stage any more; choose the run again")
        roles = tuple(each.roles[stage] for each, (_, _, stage) in zip(shown, named, strict=True))
        return runs[ask.run], _Cast(roles, tuple(each.reference for each in shown))

    def _warm_up(self, shown: Shown) -> None:
        """One short answer of every stage: what is set up at the first pass is not waited for by a user."""
        cast = _Cast(tuple(shown.roles.values()), (shown.reference,) * len(shown.roles))
        prompt = self._encode(Prompt.of("Hello"), WARM_TOKENS, RefusedRows())
        steps = stream_mixed(
            self._model,
            cast.roles,
            [prompt.prompt_ids] * len(cast.roles),
            [0] * len(cast.roles),
            max_new_tokens=WARM_TOKENS,
            temperature=1.0,
            stop_ids=[],
        )
        ids = [[token for token in column if token is not None] for column in zip(*steps, strict=True)]
        self._known(shown, cast, [prompt] * len(ids), ids, [1.0] * len(ids))

    def _encode(self, prompt: Prompt, longest_answer: int, refused: RefusedRows) -> EncodedPrompt:
        """The conversation's tokens; one that is too long loses its oldest turns. UserError where it cannot be."""
        longest = min(self.limits.max_prompt_tokens, self._context - longest_answer)
        found = RefusedRows()
        ids = encode_prompt(self._model.tokenizer, prompt, longest, found)
        if ids is None:
            raise UserError(found.summary() or "this prompt cannot be used")
        refused.truncated_prompts += found.truncated_prompts
        return EncodedPrompt(ids, prompt)

    @property
    def _context(self) -> int:
        """Tokens that the base takes in all; as many as are asked for at most where it does not say."""
        most = self.limits.max_prompt_tokens + self.limits.max_new_tokens
        return getattr(self._model.config, "max_position_embeddings", None) or most

    @property
    def _longest_answer(self) -> int:
        """At most half of the context: the rest is the prompt's."""
        return max(1, min(self.limits.max_new_tokens, self._context // 2))

    def _text(self, ids: list[int]) -> str:
        """An answer as far as it goes; the last character waits until all its bytes are there."""
        return decode_response(self._model.tokenizer, ids).rstrip("\ufffd").strip()

    def _known(
        self,
        shown: Shown,
        cast: _Cast,
        prompts: Sequence[EncodedPrompt],
        ids: Sequence[list[int]],
        seconds: Sequence[float],
    ) -> tuple[ColumnAnswer, ...]:
        """What is known of each answer; a column stopped before its first token has nothing but its text."""
        answers = [ColumnAnswer("", False, 0, 0.0, None, None, ())] * len(ids)
        begun = [column for column, own in enumerate(ids) if own]
        if not begun:
            return tuple(answers)
        batch = self._sequences([prompts[column] for column in begun], [ids[column] for column in begun])
        scores = None if shown.reward is None else self._scores(shown, batch)
        gaps = self._gaps(cast.only(begun), batch)
        stops = set(stop_ids(self._model.tokenizer))
        for row, column in enumerate(begun):
            own, gap = ids[column], gaps[row]
            answers[column] = ColumnAnswer(
                self._text(own),
                own[-1] in stops,
                len(own),
                len(own) / max(seconds[column], 1e-9),
                None if scores is None else scores[row],
                None if gap is None else sum(gap),
                () if gap is None else self._tokens(own, gap),
            )
        return tuple(answers)

    @torch.no_grad()
    def _scores(self, shown: Shown, batch: Sequences) -> list[float]:
        assert shown.reward is not None
        with self._model.role(shown.reward):
            scores: list[float] = response_scores(self._model, batch).tolist()
            return scores

    def _gaps(self, cast: _Cast, batch: Sequences) -> list[list[float] | None]:
        """Of each token, its log-probability in the column's own role less that in its reference, in nats."""
        held = [row for row, reference in enumerate(cast.references) if reference is not None]
        if not held:
            return [None] * len(cast.roles)
        roles = [cast.roles[row] for row in held] + [str(cast.references[row]) for row in held]
        own, reference = mixed_logprobs(self._model, roles, batch.index(held * 2)).chunk(2)
        found: list[list[float] | None] = [None] * len(cast.roles)
        for row, gaps, mask in zip(held, own - reference, batch.response_mask[held], strict=True):
            found[row] = gaps[: int(mask.sum())].tolist()
        return found

    def _tokens(self, ids: list[int], gaps: Sequence[float]) -> tuple[Token, ...]:
        """The answer's pieces; bytes of one character stay together, with the sum of their gaps."""
        pieces: list[Token] = []
        before, gap = "", 0.0
        for end, own in enumerate(gaps, start=1):
            gap += own
            text = decode_response(self._model.tokenizer, ids[:end])
            if text.endswith("\ufffd") and end < len(ids):
                continue
            pieces.append(Token(text[len(before) :], gap))
            before, gap = text, 0.0
        return tuple(pieces)

    def _sequences(self, prompts: Sequence[EncodedPrompt], ids: Sequence[list[int]]) -> Sequences:
        pad = pad_id(self._model.tokenizer)
        left = pad_left([prompt.prompt_ids for prompt in prompts], pad)
        return Sequences(*left, *pad_right(list(ids), pad)).to(self._model.device)
