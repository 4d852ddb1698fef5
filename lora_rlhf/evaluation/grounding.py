"""Whether answers say what their context, or the results of tools, do not: closed-domain hallucination."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lora_rlhf.data.calls import CallReader, read_as_text, read_written_calls
from lora_rlhf.data.schema import Prompt
from lora_rlhf.evaluation.columns import Column
from lora_rlhf.evaluation.report_model import GroundedAnswer, Grounding, Rate
from lora_rlhf.judges.judge import Judge
from lora_rlhf.judges.pairwise import PairwiseJudge
from lora_rlhf.judges.question import SupportTemplate, read_support
from lora_rlhf.judges.rating import AnswerJudge
from lora_rlhf.stats.agreement import interval_distance, krippendorff_alpha
from lora_rlhf.stats.grounding import unsupported_items
from lora_rlhf.stats.intervals import share_interval

JUDGED = {None: None, 1.0: "unsupported", 0.0: "supported"}
MOST_ANSWERS = 20  # of the candidate's unsupported ones in the report


class GroundedCase(NamedTuple):
    """A prompt with its sources, the figure that it belongs to, and where its answers stand: set and place."""

    figure: str
    set_name: str
    place: int
    prompt: Prompt

    @property
    def sources(self) -> list[str]:
        """All that the answer may rest on: the question, texts, and results of tools. Earlier answers are no source."""
        return [message.content for message in self.prompt.messages if message.role != "assistant"]


def grounded_cases(prompts_by_set: Mapping[str, Sequence[Prompt]]) -> list[GroundedCase]:
    """The prompts of --grounded, and those of --tools that end with a tool's result."""
    return [
        GroundedCase("unsupported_context" if name == "grounded" else "unsupported_tool", name, index, prompt)
        for name in ("tools", "grounded")
        for index, prompt in enumerate(prompts_by_set.get(name, ()))
        if name == "grounded" or prompt.messages[-1].role == "tool"
    ]


def stated_texts(answers: Sequence[str], reader: CallReader | None) -> list[str]:
    """What answers say, without their thoughts, and without calls where their form is known."""
    return [read_written_calls(reader or read_as_text, answer).text for answer in answers]


def measure_grounding(
    cases: Sequence[GroundedCase], texts_by_system: Mapping[str, Sequence[str]], judge: Judge, candidate: str
) -> tuple[dict[str, dict[str, Column]], Grounding]:
    """The figures of each system, by rules and by the judge if it is a model, and the candidate's unsupported answers.

    An answer without text tells nothing.
    """
    columns_by_system: dict[str, dict[str, Column]] = {}
    pairs, answers = [], list[GroundedAnswer]()
    for name, texts in texts_by_system.items():
        items = [unsupported_items(text, case.sources) for case, text in zip(cases, texts, strict=True)]
        by_rules = [float(bool(found)) if text else None for found, text in zip(items, texts, strict=True)]
        by_judge = _judge_values(judge, cases, texts)
        pairs += [(a, b) for a, b in zip(by_rules, by_judge, strict=True) if a is not None and b is not None]
        columns_by_system[name] = {
            figure: Column(
                "share", [value for case, value in zip(cases, by_rules, strict=True) if case.figure == figure]
            )
            for figure in dict.fromkeys(case.figure for case in cases)
        }
        if isinstance(judge, PairwiseJudge):
            columns_by_system[name]["unsupported_by_judge"] = Column("share", by_judge)
        if name == candidate:
            answers = [
                GroundedAnswer(prompt="\n".join(case.sources), response=text, items=found, judge=JUDGED[verdict])
                for case, text, found, verdict in zip(cases, texts, items, by_judge, strict=True)
                if found or verdict
            ]
    agreement = share_interval([a == b for a, b in pairs])
    grounding = Grounding(
        agreement=None if agreement is None else Rate(*agreement[:3], n=int(agreement.n)),
        alpha=krippendorff_alpha(pairs, interval_distance).alpha,
        answers=answers[:MOST_ANSWERS],
    )
    return columns_by_system, grounding


def _judge_values(judge: Judge, cases: Sequence[GroundedCase], texts: Sequence[str]) -> list[float | None]:
    """1 where the judge finds a statement without support, 0 where it finds none; None without a verdict."""
    if not isinstance(judge, PairwiseJudge):
        return [None] * len(cases)
    asked = [(case.prompt, text) for case, text in zip(cases, texts, strict=True) if text]
    verdicts = iter(AnswerJudge(judge.asker, SupportTemplate(), read_support).verdicts(asked))
    found = [next(verdicts) if text else None for text in texts]
    return [None if verdict is None else float(verdict == "no") for verdict in found]
