"""Handles requests to the model: answers of the stages of runs, their figures, and scores."""

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
from lora_rlhf.model.memory import free_memory
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.system.errors import UserError
from lora_rlhf_demo.loaded_runs import LoadedRuns, RunRoles
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
SHOW_EVERY = 0.04  # seconds between two events with partial answers: a browser draws no faster, and decoding costs time


@dataclass(frozen=True)
class Limits:
    """The largest request that is accepted."""

    max_prompt_tokens: int = 1024
    max_new_tokens: int = 512
    max_columns: int = 6


@dataclass(frozen=True)
class _ColumnRoles:
    """The role of each column, and the reference of its run."""

    roles: tuple[str, ...]
    references: tuple[str | None, ...]

    def select(self, columns: Sequence[int]) -> "_ColumnRoles":
        """The roles of some columns."""
        return _ColumnRoles(tuple(self.roles[i] for i in columns), tuple(self.references[i] for i in columns))


class RequestHandler:
    """Handles requests one at a time. Not thread-safe: only the thread of `ModelWorker` calls it."""

    def __init__(self, runs: LoadedRuns, limits: Limits) -> None:
        self.runs, self.limits = runs, limits

    def open(self, request: Open) -> Iterator[Event]:
        """Loads a run and does its slow first pass. UserError for a run that cannot be used."""
        run_roles = self.runs.find_loaded(request.run)
        if run_roles is None:
            run_roles = yield from self._load_run(request.run)
            self._warm_up(run_roles)
        other_columns = self.runs.columns_of_other_runs(request.run)
        yield Opened(tuple(run_roles.columns), run_roles.reward is not None, other_columns, self._max_answer_tokens)

    def answer(self, ask: Ask, is_stopped: Callable[[], bool]) -> Iterator[Event]:
        """Streams one answer of every column, drawn together; the last event has the figures of each answer."""
        if not 1 <= len(ask.columns) <= self.limits.max_columns:
            raise UserError(f"{len(ask.columns)} columns: choose 1 to {self.limits.max_columns}")
        run_roles, column_roles = yield from self._load_column_roles(ask)
        max_answer_tokens, refused = min(ask.settings.max_new_tokens, self._max_answer_tokens), RefusedRows()
        prompts = [
            self._encode_prompt(Prompt(column.messages), len(column.begun) + max_answer_tokens, refused)
            for column in ask.columns
        ]
        ids = [list(column.begun) for column in ask.columns]
        seconds, start_time, last_shown_time = [0.0] * len(ids), time.monotonic(), 0.0
        steps = stream_mixed(
            self._model,
            column_roles.roles,
            [[*prompt.prompt_ids, *begun] for prompt, begun in zip(prompts, ids, strict=True)],
            [ask.settings.seed + column.seed for column in ask.columns],
            max_new_tokens=max_answer_tokens,
            temperature=ask.settings.temperature,
            top_p=ask.settings.top_p,
            stop_ids=stop_ids(self._model.tokenizer),
            stop=is_stopped,
        )
        for step in steps:
            current_time = time.monotonic()
            for column, token in enumerate(step):
                if token is not None:
                    ids[column].append(token)
                    seconds[column] = current_time - start_time
            if current_time - last_shown_time >= SHOW_EVERY:
                last_shown_time = current_time
                yield Partial(tuple(map(self._decode_text, ids)), tuple(map(len, ids)))
        for column, begun in enumerate(len(column.begun) for column in ask.columns):
            # the figure is of all tokens, but only the new ones took this time
            seconds[column] *= len(ids[column]) / max(1, len(ids[column]) - begun)
        answers = self._column_answers(run_roles, column_roles, prompts, ids, seconds)
        yield Answered(answers, is_stopped(), refused.truncated_prompts > 0)

    def score(self, score: Score) -> Iterator[Event]:
        """The reward model's score of each response. UserError if the run has no reward model."""
        run_roles, prompt = (yield from self._load_run(score.run)), Prompt(score.messages)
        if run_roles.reward is None:
            raise UserError(f"run {score.run!r} has no finished reward stage; `lora-rlhf reward` makes one")
        max_answer_tokens = self._max_answer_tokens
        encoded = self._encode_prompt(prompt, max_answer_tokens, RefusedRows())
        ids = [render_response(self._model.tokenizer, prompt, text)[:max_answer_tokens] for text in score.responses]
        yield Scored(tuple(self._scores(run_roles, self._padded_sequences([encoded] * len(ids), ids))))

    def close(self) -> None:
        """Frees the model."""
        self.runs.close()

    def free_memory(self) -> None:
        """Frees what the allocator keeps, after memory ran out."""
        free_memory()

    @property
    def _model(self) -> SharedModel:
        return self.runs.model

    def _load_run(self, run: str) -> Generator[Event, None, RunRoles]:
        """Loads a run if it is not in memory, and returns its roles."""
        run_roles = self.runs.find_loaded(run)
        if run_roles is None:
            yield Loading(run)
            run_roles = self.runs.load(run)
        return run_roles

    def _load_column_roles(self, ask: Ask) -> Generator[Event, None, tuple[RunRoles, _ColumnRoles]]:
        """Loads the request's runs; returns the roles of its own run, and those of its columns.

        UserError for a stage that does not exist, and for runs on different bases.
        """
        run_stage_pairs = [
            (run or ask.run, stage) for run, _, stage in (column.stage.rpartition(":") for column in ask.columns)
        ]
        runs: dict[str, RunRoles] = {}
        for run in dict.fromkeys([*(run for run, _ in run_stage_pairs), ask.run]):
            runs[run] = yield from self._load_run(run)
        if any(self.runs.find_loaded(run) is None for run in runs):
            raise UserError("these columns are of runs on different bases, and only one base is in memory at a time")
        for (run, stage), column in zip(run_stage_pairs, ask.columns, strict=True):
            if stage not in runs[run].columns:
                raise UserError(f"column {column.stage[:80]!r}: no such stage any more; choose the run again")
        roles = tuple(runs[run].columns[stage] for run, stage in run_stage_pairs)
        return runs[ask.run], _ColumnRoles(roles, tuple(runs[run].reference for run, _ in run_stage_pairs))

    def _warm_up(self, run_roles: RunRoles) -> None:
        """One short answer of every stage, so that no user waits for what the first pass sets up."""
        roles = tuple(run_roles.columns.values())
        prompt = self._encode_prompt(Prompt.of("Hello"), WARM_TOKENS, RefusedRows())
        steps = stream_mixed(
            self._model,
            roles,
            [prompt.prompt_ids] * len(roles),
            [0] * len(roles),
            max_new_tokens=WARM_TOKENS,
            temperature=1.0,
            stop_ids=[],
        )
        ids = [[token for token in column if token is not None] for column in zip(*steps, strict=True)]
        column_roles = _ColumnRoles(roles, (run_roles.reference,) * len(roles))
        self._column_answers(run_roles, column_roles, [prompt] * len(ids), ids, [1.0] * len(ids))

    def _encode_prompt(self, prompt: Prompt, max_answer_tokens: int, refused: RefusedRows) -> EncodedPrompt:
        """The conversation's tokens. A long conversation loses its oldest turns, which `refused` counts.

        UserError for a conversation that cannot be encoded.
        """
        max_prompt_tokens = min(self.limits.max_prompt_tokens, self._max_context_tokens - max_answer_tokens)
        if max_prompt_tokens < 1:
            raise UserError("This answer fills the model's context: it cannot go on.")
        faults = RefusedRows()
        ids = encode_prompt(self._model.tokenizer, prompt, max_prompt_tokens, faults)
        if ids is None:
            raise UserError(faults.summary() or "this prompt cannot be used")
        refused.truncated_prompts += faults.truncated_prompts
        return EncodedPrompt(ids, prompt)

    @property
    def _max_context_tokens(self) -> int:
        """The base's context in tokens; if its config does not have it, the largest request."""
        largest_request = self.limits.max_prompt_tokens + self.limits.max_new_tokens
        return getattr(self._model.config, "max_position_embeddings", None) or largest_request

    @property
    def _max_answer_tokens(self) -> int:
        """At most half of the context, so that the prompt has the other half."""
        return max(1, min(self.limits.max_new_tokens, self._max_context_tokens // 2))

    def _decode_text(self, ids: list[int]) -> str:
        """The text so far, without a last character whose bytes are incomplete."""
        return decode_response(self._model.tokenizer, ids).rstrip("\ufffd").strip()

    def _column_answers(
        self,
        run_roles: RunRoles,
        column_roles: _ColumnRoles,
        prompts: Sequence[EncodedPrompt],
        ids: Sequence[list[int]],
        seconds: Sequence[float],
    ) -> tuple[ColumnAnswer, ...]:
        """Each answer with its figures; a column that was stopped before its first token has none."""
        answers = [ColumnAnswer("", False, 0, 0.0, None, None, ())] * len(ids)
        columns = [column for column, column_ids in enumerate(ids) if column_ids]
        if not columns:
            return tuple(answers)
        batch = self._padded_sequences([prompts[column] for column in columns], [ids[column] for column in columns])
        scores = None if run_roles.reward is None else self._scores(run_roles, batch)
        gaps = self._logprob_gaps(column_roles.select(columns), batch)
        stops = set(stop_ids(self._model.tokenizer))
        for row, column in enumerate(columns):
            answer_ids, answer_gaps = ids[column], gaps[row]
            answers[column] = ColumnAnswer(
                self._decode_text(answer_ids),
                answer_ids[-1] in stops,
                len(answer_ids),
                len(answer_ids) / max(seconds[column], 1e-9),
                None if scores is None else scores[row],
                None if answer_gaps is None else sum(answer_gaps),
                () if answer_gaps is None else self._answer_tokens(answer_ids, answer_gaps),
                tuple(answer_ids),
            )
        return tuple(answers)

    @torch.no_grad()
    def _scores(self, run_roles: RunRoles, batch: Sequences) -> list[float]:
        """The reward model's score of each row. The run must have a reward model."""
        assert run_roles.reward is not None
        with self._model.role(run_roles.reward):
            scores: list[float] = response_scores(self._model, batch).tolist()
            return scores

    def _logprob_gaps(self, column_roles: _ColumnRoles, batch: Sequences) -> list[list[float] | None]:
        """For each token its log-probability under the column's role minus that under its reference, in nats.

        None for a column whose run has no reference.
        """
        rows = [row for row, reference in enumerate(column_roles.references) if reference is not None]
        gaps: list[list[float] | None] = [None] * len(column_roles.roles)
        if not rows:
            return gaps
        roles = [column_roles.roles[row] for row in rows] + [str(column_roles.references[row]) for row in rows]
        logprobs, ref_logprobs = mixed_logprobs(self._model, roles, batch.index(rows * 2)).chunk(2)
        for row, row_gaps, mask in zip(rows, logprobs - ref_logprobs, batch.response_mask[rows], strict=True):
            gaps[row] = row_gaps[: int(mask.sum())].tolist()
        return gaps

    def _answer_tokens(self, ids: list[int], gaps: Sequence[float]) -> tuple[Token, ...]:
        """The answer in pieces; the bytes of one character stay together, and their gaps are added up."""
        pieces: list[Token] = []
        previous, piece_gap = "", 0.0
        for end, gap in enumerate(gaps, start=1):
            piece_gap += gap
            text = decode_response(self._model.tokenizer, ids[:end])
            if text.endswith("\ufffd") and end < len(ids):
                continue
            pieces.append(Token(text[len(previous) :], piece_gap))
            previous, piece_gap = text, 0.0
        return tuple(pieces)

    def _padded_sequences(self, prompts: Sequence[EncodedPrompt], ids: Sequence[list[int]]) -> Sequences:
        padding_id = pad_id(self._model.tokenizer)
        padded_prompts = pad_left([prompt.prompt_ids for prompt in prompts], padding_id)
        return Sequences(*padded_prompts, *pad_right(list(ids), padding_id)).to(self._model.device)
