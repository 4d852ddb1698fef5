"""The formats of rows: one table, from the columns of a format to the readers of its rows.

To add a format: put a line into FORMATS with a reader per kind (most forms have one already), and a section into
docs/data.md (a test compares the two). `recognise_formats` finds the format of a row.
"""

import difflib
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

from lora_rlhf.data import labelling_tools, open_webui, readers, readers_paired, readers_ranked, readers_steps, trees
from lora_rlhf.data.messages import Row
from lora_rlhf.data.names import fold_name
from lora_rlhf.system.errors import UserError

RecordKind = Literal["demonstrations", "rankings", "steps", "prompts", "texts"]
Reader = Callable[..., list[Any]]  # (row, *required columns) -> drafts; of prompts: their messages; of texts: the texts
Readers: TypeAlias = Mapping[RecordKind, Reader]

COMMANDS: Mapping[RecordKind, str] = {
    "demonstrations": "lora-rlhf sft --demonstrations",
    "rankings": "lora-rlhf reward --rankings",
    "steps": "lora-rlhf reward --steps",
    "prompts": "lora-rlhf ppo --prompts",
    "texts": "lora-rlhf ppo --pretraining-text",
}
TOOL_CALLS = "the row holds tool calls within one text; write messages with tool_calls"
PARTS_OF_TREE = "the row is a message of a tree without message_tree_id, so the messages of a tree cannot be found"


@dataclass(frozen=True, eq=False)
class Format:
    """How rows of one format are recognised and read.

    name: for --format. title: for people. required, optional: the columns that the readers use. A row has the format if
    all required columns are filled and `has_valid_values`, if not None, is true. readers: a reader for each kind of
    record, the main kind first; it gets the row and the names of the required columns and returns drafts, or raises
    BadRow. Rows with an equal `group_key` are merged into one by `merge_rows` before they are read, a single row too.
    unusable_reason: why rows are refused if the kind of record has no reader. unwrap: makes the row of the chat log
    ("messages" or "correction") that a row holds; that is read in its place.
    """

    name: str
    title: str
    required: tuple[str, ...]
    readers: Readers
    optional: tuple[str, ...] = ()
    has_valid_values: Callable[[Row], bool] | None = None
    group_key: Callable[[Row], Hashable] | None = None
    merge_rows: Callable[[list[Row]], Row] | None = None
    unusable_reason: str = ""
    unwrap: Callable[[Row], Row] | None = None

    @cached_property
    def columns(self) -> frozenset[str]:
        """All columns that the readers use; the prompt's meta keeps the others."""
        return frozenset(self.required + self.optional)

    @cached_property
    def kinds(self) -> tuple[RecordKind, ...]:
        """The kinds of record that rows can be read as, the main kind first; prompts come last."""
        return tuple(self.readers)

    @cached_property
    def has_one_answer(self) -> bool:
        """Whether a row is one answer to one prompt, which other columns may grade."""
        return self.kinds[:1] == ("demonstrations",)

    def missing_columns(self, row: Row) -> list[str]:
        """The required columns that are missing or empty."""
        return [column for column in self.required if row.get(column) is None]

    def is_format_of(self, row: Row) -> bool:
        """Whether the row has the required columns, filled, with valid values."""
        return not self.missing_columns(row) and (self.has_valid_values is None or self.has_valid_values(row))


def _answer_format(name: str, title: str, required: tuple[str, str], optional: tuple[str, ...] = ()) -> Format:
    """A format with a prompt in the first column and its answer in the second."""
    by_kind: Readers = {"demonstrations": readers.read_answer, "prompts": readers.read_prompt}
    return Format(name, title, required, by_kind, optional)


def _chat_format(name: str, title: str, column: str, optional: tuple[str, ...] = ()) -> Format:
    """A format with a conversation that ends with the answer."""
    by_kind: Readers = {
        "demonstrations": readers.read_conversation,
        "prompts": readers.read_conversation_without_answer,
    }
    return Format(name, title, (column,), by_kind, optional)


def _pair_format(name: str, title: str, required: tuple[str, str, str], optional: tuple[str, ...] = ()) -> Format:
    """A format with a prompt, as text or as a conversation, and a chosen and a rejected response."""
    by_kind: Readers = {"rankings": readers_paired.read_prompted_pair, "prompts": readers.read_prompt_without_answer}
    return Format(name, title, required, by_kind, (*optional, "labeler"))


def _choice_format(
    name: str, title: str, required: tuple[str, str, str, str], optional: tuple[str, ...] = ()
) -> Format:
    """A format with a prompt, two responses, and a column for the choice."""
    by_kind: Readers = {"rankings": readers_ranked.read_choice, "prompts": readers_ranked.read_choice_prompt}
    return Format(name, title, required, by_kind, (*optional, "labeler"))


TREE_READERS: Readers = {
    "rankings": trees.read_tree_rankings,
    "demonstrations": trees.read_tree_demonstrations,
    "prompts": trees.read_tree_prompts,
}
CORRECTION_READERS: Readers = {
    "rankings": readers_paired.read_correction,
    "demonstrations": readers.read_corrected_answer,
    "prompts": readers.read_conversation_without_answer,
}
# fmt: off
FORMATS: tuple[Format, ...] = (
    # demonstrations
    _answer_format("prompt-completion", "TRL: prompt and completion", ("prompt", "completion"), ("text",)),
    _answer_format("prompt-response", "prompt and response", ("prompt", "response"), ("text",)),
    _answer_format("prompt-output", "prompt and output", ("prompt", "output"), ("text",)),
    _answer_format("question-answer", "GSM8K: question and answer", ("question", "answer")),
    _answer_format("question-solution", "question and solution", ("question", "solution")),
    _answer_format("problem-solution", "MATH: problem and solution", ("problem", "solution"), ("answer",)),
    _answer_format("problem-answer", "problem and answer", ("problem", "answer")),
    _answer_format("openmath", "OpenMathInstruct: problem and generated solution", ("problem", "generated_solution")),
    _answer_format("query-response", "ms-swift, MetaMath: query and response", ("query", "response")),
    _answer_format("input-output", "Nemotron: input and output", ("input", "output")),
    _answer_format("inputs-targets", "FLAN, P3: inputs and targets", ("inputs", "targets")),
    _answer_format("user-assistant", "user and assistant", ("user", "assistant")),
    _answer_format("human-assistant", "human and assistant", ("human", "assistant")),
    _answer_format("alpaca", "Alpaca: instruction, input and output", ("instruction", "output"), ("prompt", "text")),
    _answer_format("dolly", "Dolly: instruction, context and response", ("instruction", "response"), ("text",)),
    _answer_format("orca", "OpenOrca: question and response", ("question", "response")),
    Format("self-instruct", "Self-Instruct: an instruction with inputs and outputs", ("instruction", "instances"),
           {"demonstrations": readers.read_instances, "prompts": readers.read_instance_prompts}),
    _chat_format("messages", "TRL: a conversation that ends with the answer", "messages", ("prompt", "text")),
    _chat_format("sharegpt", "ShareGPT, LIMA: conversations", "conversations", ("text",)),
    _chat_format("conversation", "LMSYS-Chat, Capybara: a conversation", "conversation", ("text",)),
    _chat_format("gemini", "Gemini: contents with parts", "contents"),
    Format("ultrachat", "UltraChat: a list of texts in turn", ("data",),
           {"demonstrations": readers.read_conversation, "prompts": readers.read_conversation_without_answer},
           has_valid_values=readers.has_alternating_texts),
    Format("xlam", "xLAM: a query, and the calls that answer it", ("query", "answers"),
           {"demonstrations": readers.read_calls_of_query, "prompts": readers.read_prompt},
           has_valid_values=readers.has_tools),
    Format("messages-completion", "a conversation and its answer", ("messages", "completion"),
           {"demonstrations": readers.read_continuation, "prompts": readers.read_conversation_without_answer}),
    # rankings of two
    Format("preference", "TRL: chosen and rejected, with or without their prompt", ("chosen", "rejected"),
           {"rankings": readers_paired.read_pair, "prompts": readers_paired.read_pair_prompt},
           ("prompt", "labeler", "response")),
    Format("hh-rlhf", "HH-RLHF: chosen and rejected dialogues", ("chosen", "rejected"),
           {"rankings": readers_paired.read_hh_pair, "prompts": readers_paired.read_hh_prompt}, ("prompt", "labeler"),
           has_valid_values=readers_paired.is_hh_pair),
    _pair_format("alpaca-preference", "Alpaca's prompt with chosen and rejected",
                 ("instruction", "chosen", "rejected")),
    _pair_format("orca-dpo", "Orca DPO pairs: question, chosen and rejected", ("question", "chosen", "rejected")),
    _pair_format("input-pair", "distilabel: input, chosen and rejected", ("input", "chosen", "rejected")),
    Format("context-pair", "ColossalChat: the conversation in context", ("context", "chosen", "rejected"),
           {"rankings": readers_paired.read_prompted_pair, "prompts": readers.read_prompt_without_answer}, ("labeler",),
           has_valid_values=readers_paired.is_context_pair),
    _pair_format("conversations-pair", "LLaMA-Factory: conversations, chosen and rejected",
                 ("conversations", "chosen", "rejected")),
    _pair_format("messages-pair", "messages, chosen and rejected", ("messages", "chosen", "rejected"), ("prompt",)),
    Format("chosen-messages", "LLaMA-Factory v1: chosen_messages and rejected_messages",
           ("chosen_messages", "rejected_messages"),
           {"rankings": readers_paired.read_pair, "prompts": readers_paired.read_pair_prompt}, ("prompt", "labeler")),
    _pair_format("chosen-response", "NeMo: chosen_response and rejected_response",
                 ("prompt", "chosen_response", "rejected_response")),
    _pair_format("query-pair", "ms-swift: query, response and rejected_response",
                 ("query", "response", "rejected_response")),
    Format("rejected-response", "ms-swift: messages and rejected_response", ("messages", "rejected_response"),
           {"rankings": readers_paired.read_rejected_response, "prompts": readers.read_conversation_without_answer},
           ("prompt",)),
    Format("ultrafeedback-binarized", "UltraFeedback, binarized: chosen and rejected with scores",
           ("prompt", "chosen", "rejected", "score_chosen", "score_rejected"),
           {"rankings": readers_paired.read_prompted_pair, "prompts": readers.read_prompt}, ("messages", "prompt_id")),
    Format("stack-exchange", "Stack Exchange pairs: response_j is better than response_k",
           ("question", "response_j", "response_k"),
           {"rankings": readers_ranked.read_better_first, "prompts": readers.read_prompt}),
    Format("openai-preference", "OpenAI: input, preferred_output and non_preferred_output",
           ("input", "preferred_output", "non_preferred_output"),
           {"rankings": readers_ranked.read_openai_preference, "prompts": readers_ranked.read_openai_prompt}),
    Format("shp", "Stanford Human Preferences: two replies to a post",
           ("history", "human_ref_A", "human_ref_B", "labels"),
           {"rankings": readers_ranked.read_shp, "prompts": readers_ranked.read_shp_prompt}),
    Format("helpsteer3", "HelpSteer3: two responses and a preference from -3 to 3",
           ("context", "response1", "response2", "overall_preference"),
           {"rankings": readers_ranked.read_preference_strength, "prompts": readers_ranked.read_helpsteer_prompt}),
    Format("helpsteer2-preference", "HelpSteer2: two responses and a preference from -3 to 3",
           ("prompt", "response_1", "response_2", "preference_strength"),
           {"rankings": readers_ranked.read_preference_strength, "prompts": readers_ranked.read_helpsteer_prompt}),
    Format("webgpt", "WebGPT: two answers with scores", ("question", "answer_0", "answer_1", "score_0", "score_1"),
           {"rankings": readers_ranked.read_webgpt, "prompts": readers_ranked.read_webgpt_prompt}),
    _choice_format("alpaca-farm", "AlpacaFarm: output_1, output_2 and preference",
                   ("instruction", "output_1", "output_2", "preference")),
    _choice_format("pku-saferlhf", "PKU-SafeRLHF: the better of two responses",
                   ("prompt", "response_0", "response_1", "better_response_id"),
                   ("is_response_0_safe", "is_response_1_safe")),
    _choice_format("arena", "LMArena: two responses and a winner", ("prompt", "response_a", "response_b", "winner")),
    Format("arena-kaggle", "LMSYS on Kaggle: two responses and three columns of who won",
           ("prompt", "response_a", "response_b", "winner_model_a", "winner_model_b", "winner_tie"),
           {"rankings": readers_ranked.read_arena_kaggle, "prompts": readers_ranked.read_choice_prompt}),
    Format("arena-conversations", "Chatbot Arena: two conversations and a winner",
           ("conversation_a", "conversation_b", "winner"),
           {"rankings": readers_ranked.read_two_conversations, "prompts": readers_ranked.read_first_conversation},
           ("judge",)),
    Format("label-studio", "Label Studio: its JSON export of pairwise choices and of rankings", ("data", "annotations"),
           {"rankings": labelling_tools.read_label_studio, "prompts": labelling_tools.read_label_studio_prompt},
           has_valid_values=labelling_tools.is_label_studio),
    Format("label-studio-min", "Label Studio: its JSON_MIN export of choices", ("prompt", "answer1", "answer2"),
           {"rankings": labelling_tools.read_label_studio_min, "prompts": readers.read_prompt}, ("annotator",),
           has_valid_values=labelling_tools.is_label_studio_min),
    # what users of a deployed model say of its answers
    Format("correction", "a chat log: a conversation, and what its last answer should have been",
           ("messages", "correction"), CORRECTION_READERS, ("prompt", "labeler"),
           has_valid_values=readers.has_correction),
    Format("open-webui", "Open WebUI: its export of feedback", ("data", "meta", "snapshot"), CORRECTION_READERS,
           has_valid_values=open_webui.is_feedback, unwrap=open_webui.to_chat),
    # rankings of many
    Format("ranking", "a prompt with K ranked responses", ("prompt", "responses", "ranks"),
           {"rankings": readers_ranked.read_ranking, "prompts": readers.read_prompt}, ("labeler", "ended")),
    Format("scored-responses", "a prompt with K scored responses", ("prompt", "responses", "scores"),
           {"rankings": readers_ranked.read_scored_responses, "prompts": readers.read_prompt}, ("labeler",)),
    Format("ultrafeedback", "UltraFeedback: scored completions", ("instruction", "completions"),
           {"rankings": readers_ranked.read_ultrafeedback, "prompts": readers.read_prompt}),
    Format("nectar", "Nectar: ranked answers", ("prompt", "answers"),
           {"rankings": readers_ranked.read_nectar, "prompts": readers.read_prompt}),
    Format("summarize", "OpenAI's summarize-from-feedback comparisons", ("info", "summaries", "choice"),
           {"rankings": readers_ranked.read_summaries, "prompts": readers_ranked.read_summaries_prompt}, ("worker",)),
    Format("argilla", "Argilla: its export of a ranking question",
           ("prompt", "response-1", "response-2", "ranking.responses"),
           {"rankings": labelling_tools.read_argilla, "prompts": readers.read_prompt},
           (*(f"response-{number}" for number in range(3, 27)),
            *(f"ranking.responses.{name}" for name in ("status", "users", "columns")))),
    # rankings in several rows
    Format("helpsteer", "HelpSteer and HelpSteer2: a rated response a row",
           ("prompt", "response", "helpfulness", "correctness", "coherence", "complexity", "verbosity"),
           {"rankings": readers_ranked.read_helpsteer, "demonstrations": readers_ranked.read_helpsteer,
            "prompts": readers_ranked.read_helpsteer_prompt}),
    Format("unpaired", "an answer a row, labelled good or bad (TRL's KTO columns)", ("prompt", "completion", "label"),
           {"rankings": readers.read_answer, "demonstrations": readers.read_answer, "prompts": readers.read_prompt}),
    Format("scored", "an answer a row, with a score", ("prompt", "response", "score"),
           {"rankings": readers.read_answer, "demonstrations": readers.read_answer, "prompts": readers.read_prompt}),
    Format("oasst", "OpenAssistant: a tree of messages", ("message_tree_id", "prompt"),
           TREE_READERS, ("tree_state",), has_valid_values=trees.is_tree),
    Format("oasst-messages", "OpenAssistant: a message a row", ("message_id", "message_tree_id", "text", "role"),
           TREE_READERS, trees.MESSAGE_COLUMNS, group_key=trees.tree_key, merge_rows=trees.merge_tree),
    # answers whose steps are labelled
    Format("step-labels", "TRL: an answer's steps and their labels", ("prompt", "completions", "labels"),
           {"steps": readers_steps.read_steps, "prompts": readers.read_prompt},
           (*readers_steps.WHOLE_ANSWERS, "ended", "labeler")),
    Format("prm800k", "PRM800K: rated steps", ("question", "label"),
           {"steps": readers_steps.read_prm800k, "prompts": readers_steps.read_prm800k_prompt}, ("labeler",),
           has_valid_values=readers_steps.is_prm800k),
    Format("math-shepherd", "Math-Shepherd: steps with a mark, and the marks' labels", ("input", "label"),
           {"steps": readers_steps.read_math_shepherd, "prompts": readers_steps.read_math_shepherd_prompt}, ("task",),
           has_valid_values=readers_steps.is_math_shepherd),
    # the rest
    Format("prompt", "prompts alone", ("prompt",), {"prompts": readers.read_prompt}),
    Format("instruction", "instructions alone", ("instruction",), {"prompts": readers.read_prompt}),
    Format("question", "questions alone", ("question",), {"prompts": readers.read_prompt}),
    Format("query", "queries alone", ("query",), {"prompts": readers.read_prompt}),
    Format("problem", "problems alone", ("problem",), {"prompts": readers.read_prompt}),
    Format("mt-bench", "MT-Bench: the first question of its turns", ("question_id", "turns"),
           {"prompts": readers.read_first_question}, has_valid_values=readers.has_no_prompt_column),
    Format("text", "plain text", ("text",), {"texts": readers.read_text}, has_valid_values=readers.is_plain_text),
    # recognised, and refused with the reason
    Format("glaive", "Glaive: a chat with function calls", ("system", "chat"), {}, unusable_reason=TOOL_CALLS),
    Format("tree-messages", "messages of trees, without message_tree_id", ("message_id", "text", "role"),
           {}, unusable_reason=PARTS_OF_TREE),
)
# fmt: on

GRADED_FORMATS = ("unpaired", "scored")  # names for rows of any format of demonstrations with a verdict or a score
KNOWN_COLUMNS: frozenset[str] = frozenset().union(*(format.columns for format in FORMATS))
# The columns that may be spelled in another way, by the spelling in which names are compared.
SPELLINGS: Mapping[str, str] = {fold_name(column): column for column in sorted(KNOWN_COLUMNS)}

# Always lists or objects, so that a table's cell is parsed. Columns that may hold text as well (prompt, chosen ...) are
# not among them: an answer that happens to be JSON is an answer.
LIST_COLUMNS: frozenset[str] = frozenset(
    "messages conversations conversation_a conversation_b contents responses ranks completions answers info summaries "
    "annotations ranking.responses ranking.responses.status ranking.responses.users turns".split()
)


def find_format(name: str) -> Format:
    """The format with a name. UserError with the nearest name and all names."""
    names = [format.name for format in FORMATS]
    if name in names:
        return FORMATS[names.index(name)]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(f"--format {name}: there is no such format; {hint}known: {', '.join(names)}")
