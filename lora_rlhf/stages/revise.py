"""Before stage 1 is done again: a model criticizes answers by written principles, and revises them.

This is the supervised half of Constitutional AI (Bai et al., arXiv 2212.08073, section 3.1): each round draws one
principle, asks for a critique of the answer by it and for a revision, and the next round begins with that. The last
revision is a demonstration; with the answer that it came from it is also a ranking.
"""

import logging
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lora_rlhf.configs.catalogue import BASE, BY_ROLE, SFT
from lora_rlhf.configs.label import ReviseConfig
from lora_rlhf.configs.sample import SampleConfig
from lora_rlhf.configs.values import check
from lora_rlhf.data.io import write_jsonl
from lora_rlhf.data.messages import to_response
from lora_rlhf.data.refusals import BadRow
from lora_rlhf.data.schema import Demonstration, Prompt, Ranking, make_row, require_ended
from lora_rlhf.data.template import decode_response, render_verbatim
from lora_rlhf.judges.asking import Asker, Read, Reply
from lora_rlhf.judges.choose import open_asker, open_cache
from lora_rlhf.judges.question import (
    MAX_CHARACTERS,
    RevisionTemplate,
    read_reply_with_revision,
    split_principles,
    split_revision,
    turns_text,
)
from lora_rlhf.model.memory import free_memory
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.runs.folder import find_stage
from lora_rlhf.stages.best_of import report_path
from lora_rlhf.stages.judging import JudgedRows, judged_from, read_items, read_principles, require_new_output
from lora_rlhf.stages.sampler import Sampler
from lora_rlhf.stages.session import load_parent_role, open_parent_base
from lora_rlhf.system.disk import write_json
from lora_rlhf.system.errors import UserError
from lora_rlhf.system.untrusted import quote

log = logging.getLogger("lora_rlhf")

PROMPTS_AT_A_TIME = 32


class Answer(NamedTuple):
    """What is to be revised. ended: whether it ended by itself; empty if nobody knows."""

    prompt: Prompt
    text: str
    ended: tuple[bool, ...]


def revise(config: ReviseConfig) -> dict[str, Any]:
    """Writes demonstrations, rankings, steps and a report, which is returned.

    What is done stands in a file beside `to` until all is: an attempt that ended goes on there. A prompt on which the
    model fails in any round is left out and counted. Errors as of `label`.
    """
    check(config)
    require_new_output(config, config.responses)
    text, principles_hash = read_principles(config.principles)
    principles = split_principles(text)
    if not principles:
        raise UserError(
            f"--principles {config.principles}: only headings; write one principle a paragraph or list item"
        )
    answers = read_items(config.responses, _to_answer, "revise")
    asker = _open_asker(config)
    version = RevisionTemplate("").version

    def describe() -> dict[str, Any]:
        return {"name": asker.name, **asker.model.identity(), "template": version, **asker.describe()}

    judged = JudgedRows(config.to, asker, judged_from(config, asker, principles_hash), describe, "revise")
    try:
        rows = judged.make(answers, PROMPTS_AT_A_TIME, lambda some: _revise(config, asker, principles, some))
    finally:
        asker.model.close()
    found = [row for row in rows if row is not None]
    about = {"by": asker.model_name, "principles": principles_hash}
    pairs = [row["ranking"] | about for row in found if row["ranking"]]
    report = {
        "principles": {"file": config.principles or "built-in", "sha256": principles_hash, "number": len(principles)},
        **{"prompts": len(answers), "revised": len(found), "failed": len(answers) - len(found)},
        **{"rounds": config.rounds, "unchanged": len(found) - len(pairs), "judge": judged.describe()},
    }
    write_jsonl(beside(config.to, "steps"), [row["steps"] for row in found])
    write_jsonl(beside(config.to, "rankings"), pairs)
    judged.finish([row["demonstration"] | about for row in found])
    write_json(report_path(config.to), report)
    return report


def beside(to: str, name: str) -> Path:
    """Another file of the same work: NAME.rankings.jsonl of NAME.jsonl."""
    return Path(to).with_suffix(f".{name}.jsonl")


def _revise(
    config: ReviseConfig, asker: Asker, principles: Sequence[str], answers: Sequence[Answer]
) -> list[dict[str, Any] | None]:
    """The demonstration, ranking and steps of each answer; None where the model failed in a round."""
    steps: list[list[dict[str, str]]] = [[] for _ in answers]
    texts: list[str | None] = [answer.text for answer in answers]
    for number in range(config.rounds):
        drawn = [_draw(principles, config.seed, answer.prompt, number) for answer in answers]
        keys, questions = [""] * len(answers), dict[str, str]()
        for index, (answer, text) in enumerate(zip(answers, texts, strict=True)):
            if text is None:
                continue
            template = RevisionTemplate(drawn[index])
            keys[index] = key = asker.key(template.version, turns_text(answer.prompt), text, "")
            if asker.verdict(key) is None:
                questions[key] = template.make_question(answer.prompt, text).text
            else:
                asker.counts.cached += 1
        asker.ask(questions, read_reply_with_revision)
        for index, key in enumerate(keys):
            reply = asker.verdict(key) if key else None
            critique, revision = split_revision(reply or "")
            texts[index] = revision or None
            steps[index].append({"principle": drawn[index], "critique": critique, "revision": revision})
    return [
        None if text is None else _row(asker, answer, text, its_steps)
        for answer, text, its_steps in zip(answers, texts, steps, strict=True)
    ]


def _draw(principles: Sequence[str], seed: int, prompt: Prompt, number: int) -> str:
    """The principle of a round: it depends on the prompt, not on its place in the file."""
    return random.Random(f"revise-{seed}-{number}-{prompt.key}").choice(principles)


def _row(asker: Asker, answer: Answer, revision: str, steps: list[dict[str, str]]) -> dict[str, Any]:
    prompt, original = answer.prompt, answer.text
    ended = (True, *answer.ended) if answer.ended else ()
    is_changed = revision != original.strip()
    ranking = Ranking(prompt, (revision, original), (1, 2), asker.model_name, ended) if is_changed else None
    return {
        "demonstration": make_row(Demonstration(prompt, revision)),
        "ranking": None if ranking is None else make_row(ranking),
        "steps": {**make_row(prompt), "original": original, "steps": steps, "final": revision},
    }


def _to_answer(prompt: Prompt) -> Answer:
    """The first response of a row that `sample` wrote. BadRow without one, and for texts too long to revise."""
    meta = dict(prompt.meta)
    values, ended = meta.pop("responses", None), meta.pop("ended", None)
    if not isinstance(values, list) or not values:
        raise BadRow("no responses to revise", "`lora-rlhf sample` writes them")
    text = to_response(values[0], "response")
    if not text.strip():
        raise BadRow("the first response is empty")
    if max(len(text), *(len(message.text) for message in prompt.messages)) > MAX_CHARACTERS:
        raise BadRow("prompt or response too long to be revised", f"more than {MAX_CHARACTERS:,} characters")
    return Answer(
        Prompt(prompt.messages, meta, prompt.origin, prompt.tools), text, require_ended(ended, len(values))[:1]
    )


def _open_asker(config: ReviseConfig) -> Asker:
    if config.by != "stage":
        return open_asker(config, config.by, "by", config.to, config.device, config.trust_remote_code, True)
    return Asker("stage", StageModel(config), open_cache(config, config.to, True), "by", config.judge_budget)


class StageModel:
    """A model of a run as the one that is asked, with greedy decoding; loaded for its first question."""

    def __init__(self, config: ReviseConfig) -> None:
        """UserError where the run has no such stage."""
        assert config.run is not None
        self._config = config
        self._sft = find_stage(f"{config.run}/{SFT.name}", SFT.name)
        name = SFT.name if config.role == BASE else BY_ROLE[config.role].name
        self._stage = find_stage(f"{config.run}/{name}", name)
        self._model: SharedModel | None = None

    def identity(self) -> dict[str, Any]:
        name = f"{self._config.role} of {self._stage.run.resolve().name}"
        return {"model": name, "weights": self._stage.manifest["id"], "max_tokens": self._config.judge_max_tokens}

    def price(self, tokens_in: int, tokens_out: int) -> float | None:
        """Always None: it runs here."""
        return None

    def close(self) -> None:
        self._model = None
        free_memory()

    def ask(self, questions: Sequence[str], read: Read, on_reply: Callable[[int, Reply], None]) -> None:
        """See `asking.JudgeModel`. A question that exceeds the model's context is a failure."""
        config = self._config
        settings = SampleConfig(
            run=str(config.run),
            prompts=config.responses,
            to=config.to,
            device=config.device,
            trust_remote_code=config.trust_remote_code,
            generation_batch_size=config.judge_batch_size,
            max_response_tokens=config.judge_max_tokens,
        )
        if self._model is None:
            self._model = open_parent_base(settings, self._sft, None)
            if config.role != BASE:
                load_parent_role(self._model, config.role, self._stage)
        model = self._model
        context = getattr(model.config, "max_position_embeddings", None)
        for start in range(0, len(questions), config.judge_batch_size):
            numbers, prompts = list[int](), list[list[int]]()
            for number, question in enumerate(questions[start : start + config.judge_batch_size], start):
                ids = render_verbatim(model.tokenizer, Prompt.of(question))
                if context is not None and len(ids) + config.judge_max_tokens > context:
                    detail = f"{len(ids)} tokens and {config.judge_max_tokens} to write, context {context}"
                    on_reply(number, Reply(None, "longer than its context", detail, calls=0))
                    continue
                numbers.append(number)
                prompts.append(ids)
            sampler = Sampler(settings, model, config.role, 0.0)
            groups = sampler.sample(prompts, [[0]] * len(prompts)) if prompts else []
            for number, ids, (response,) in zip(numbers, prompts, groups, strict=True):
                reply = decode_response(model.tokenizer, response.ids)
                verdict = read(reply) if response.finished else None
                fault = "no revision in its reply" if response.finished else "cut off by --judge_max_tokens"
                tokens = len(ids), len(response.ids)
                faults = ("", "") if verdict else (fault, quote(reply[-200:]))
                on_reply(number, Reply(verdict, *faults, 1, *tokens))
