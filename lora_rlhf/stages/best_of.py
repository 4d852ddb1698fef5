"""Best of n: of n sampled responses of a prompt the best ones become demonstrations, a baseline that PPO must beat.

With `keep` above 1 it is rejection sampling (Touvron et al., arXiv 2307.09288, section 3.2.3).
"""

import itertools
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lora_rlhf.algo.kl import best_of_n_kl
from lora_rlhf.configs.sample import SampleConfig
from lora_rlhf.data.batches import response_batch
from lora_rlhf.data.encode import EncodedPrompt
from lora_rlhf.data.refusals import pluralize
from lora_rlhf.data.schema import Demonstration, Prompt, make_row
from lora_rlhf.data.sources import Source
from lora_rlhf.data.template import decode_response, pad_id
from lora_rlhf.model.forward import Sequences
from lora_rlhf.model.generate import Response
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.stages.auto_batch import AutoBatch
from lora_rlhf.stages.judged import JudgedReward
from lora_rlhf.stages.scorer import TRIED, ProcessReward, ResponseScorer, open_functions
from lora_rlhf.system.disk import write_json
from lora_rlhf.system.errors import UserError

log = logging.getLogger("lora_rlhf")

Candidates = dict[str, Any]  # responses: texts; scores: a number each, None where it can be no demonstration


class BestOf:
    """Scores a prompt's candidates, and keeps the best ones. `close` frees a judge's memory."""

    def __init__(self, config: SampleConfig, prompts: Source[Prompt], step_end: str | None = None) -> None:
        """step_end: of the reward, where it is a process reward.

        UserError, before anything is loaded, for a reward function that cannot be used on the prompts.
        """
        self._config = config
        # a response on which a function fails gets no number, so that it is never the best
        first = list(itertools.islice(prompts, TRIED))
        functions = open_functions(config, -math.inf, first)
        judge = JudgedReward.from_config(config, -math.inf, first)
        assert config.best_of is not None
        process = None if step_end is None else ProcessReward(step_end, config.score_steps_by)
        weight = float(config.by == "reward" and process is None)
        self._scorer = ResponseScorer(weight, functions, judge, process, config.best_of)
        self._batch = AutoBatch.for_training(config)

    @torch.no_grad()
    def candidates(
        self, model: SharedModel, prompts: Sequence[EncodedPrompt], groups: Sequence[Sequence[Response]]
    ) -> list[Candidates]:
        """The scored responses of each prompt. One that is empty or did not end has no score."""
        repeated = [prompt for prompt, group in zip(prompts, groups, strict=True) for _ in group]
        responses = [response for group in groups for response in group]
        if not responses:  # of several processes one may have nothing to do; all ask the judge together
            if self._scorer.judge is not None:
                self._scorer.judge.score([], [], 1)
            return []
        ids = [response.ids for response in responses]
        texts = [decode_response(model.tokenizer, response_ids).strip() for response_ids in ids]
        batch = response_batch([prompt.prompt_ids for prompt in repeated], ids, pad_id(model.tokenizer))
        sequences = Sequences(*batch).to(model.device)
        scored = self._scorer.scores(model, sequences, repeated, ids, texts, self._batch)
        applies = [True] * len(texts)
        if scored.parts:
            applies = (~torch.stack(list(scored.parts.values())).isnan()).any(dim=0).tolist()
        scores = [
            score if is_scored and math.isfinite(score) and response.finished and text else None
            for score, is_scored, response, text in zip(scored.total.tolist(), applies, responses, texts, strict=True)
        ]
        found, start = list[Candidates](), 0
        for group in groups:
            rows = slice(start, start := start + len(group))
            found.append({"responses": texts[rows], "scores": scores[rows]})
        return found

    def close(self) -> None:
        self._scorer.close()

    def finish(
        self, config: SampleConfig, prompts: Sequence[EncodedPrompt], candidates: Sequence[Candidates]
    ) -> list[dict[str, Any]]:
        """The demonstrations of all prompts; says what was won, and writes it beside the output file.

        UserError where no prompt has a response to keep.
        """
        kept = [self._kept(one) for one in candidates]
        rows = [
            make_row(Demonstration(encoded.prompt, one["responses"][index]))
            for encoded, one, indices in zip(prompts, candidates, kept, strict=True)
            for index in indices
        ]
        if not rows:
            wanted = "a score" if self._config.min_score is None else f"a score of {self._config.min_score:g} or more"
            raise UserError(
                f"none of {pluralize(len(candidates), 'prompt')} gave a finished response with {wanted}; see "
                f"--reward_functions, --min_score and --max_response_tokens"
            )
        report = self._report(candidates, kept)
        write_json(report_path(self._config.to), report)
        log.info("%s: %s\n%s", config.to, pluralize(len(rows), "demonstration"), _summary(report))
        return rows

    def _kept(self, one: Candidates) -> list[int]:
        """The candidates of a prompt that are kept, best first; of equal scores, and of equal texts, the earlier."""
        scores, texts = one["scores"], one["responses"]
        least = -math.inf if self._config.min_score is None else self._config.min_score
        order = sorted((index for index, score in enumerate(scores) if score is not None), key=lambda i: -scores[i])
        distinct = list({texts[index]: index for index in reversed(order) if scores[index] >= least}.values())
        return sorted(distinct, key=order.index)[: self._config.keep]

    def _report(self, candidates: Sequence[Candidates], kept: Sequence[list[int]]) -> dict[str, Any]:
        scores = [score for one in candidates for score in one["scores"]]
        before = [score for score in scores if score is not None]
        after = [one["scores"][index] for one, indices in zip(candidates, kept, strict=True) for index in indices]
        n = self._config.best_of
        assert n is not None
        return {
            "by": self._config.by,
            **({"score_steps_by": self._config.score_steps_by} if self._scorer.process is not None else {}),
            "best_of": n,
            "prompts": len(candidates),
            "prompts_left_out": sum(not indices for indices in kept),
            "responses": len(scores),
            "responses_without_score": len(scores) - len(before),
            "kept": len(after),
            "acceptance": len(after) / len(scores),
            "prompts_with_a_tie": sum(map(_is_tied, candidates)),
            "mean_score": {"before": sum(before) / len(before), "after": sum(after) / len(after)},
            "kl_bound_nats": best_of_n_kl(n),
        }


def report_path(to: str) -> Path:
    """Where the figures of the output file stand: best.jsonl has best.report.json."""
    return Path(to).with_suffix(".report.json")


def _is_tied(one: Candidates) -> bool:
    """Whether several different responses have the highest score."""
    scored = [(score, text) for score, text in zip(one["scores"], one["responses"], strict=True) if score is not None]
    best = max((score for score, _ in scored), default=None)
    return len({text for score, text in scored if score == best}) > 1


def _summary(report: dict[str, Any]) -> str:
    mean, n, by = report["mean_score"], report["best_of"], report.get("score_steps_by", report["by"])
    parts = [
        f"best of {n} by {by}: mean score {mean['before']:.4g} of all responses, {mean['after']:.4g} of the "
        f"kept; kept {report['kept']} of {report['responses']} ({report['acceptance']:.1%})",
        f"KL to the model that sampled: at most log n - (n - 1) / n = {report['kl_bound_nats']:.3f} nats a response",
    ]
    if n == 1:
        parts.append("the best of 1 is plain sampling, so nothing was chosen")
    if ties := report["prompts_with_a_tie"]:
        parts.append(f"in {pluralize(ties, 'prompt')} several responses are best, and the one sampled first is taken")
    if missing := report["responses_without_score"]:
        parts.append(f"{pluralize(missing, 'response')} did not end, were empty or have no score, and cannot be kept")
    if left_out := report["prompts_left_out"]:
        parts.append(f"{pluralize(left_out, 'prompt')} without a response to keep left out")
    return "\n".join(parts)
