"""The formats of rows: one table, from the columns of a format to the readers of its rows.

To add a format: put a line into FORMATS with a reader per kind (most forms have one already), and a section into
docs/data.md (a test compares the two). `recognise` finds the format of a row.
"""

import difflib
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

from lora_rlhf.data import readers, readers_paired, readers_ranked, trees
from lora_rlhf.data.messages import Row
from lora_rlhf.data.names import fold_name
from lora_rlhf.system.errors import UserError

RecordKind = Literal["demonstrations", "rankings", "prompts", "texts"]
Reader = Callable[..., list[Any]]  # (row, *required columns) -> drafts; of prompts: their messages; of texts: the texts
Readers: TypeAlias = Mapping[RecordKind, Reader]

COMMANDS: Mapping[RecordKind, str] = {
    "demonstrations": "lora-rlhf sft --demonstrations",
    "rankings": "lora-rlhf reward --rankings",
    "prompts": "lora-rlhf ppo --prompts",
    "texts": "lora-rlhf ppo --pretraining-text",
}
TOOL_CALLS = "the row holds a tool call, and no stage here learns tool calls yet"
STEPS = "the row holds labels of the steps of an answer, and no stage here learns from steps"
PARTS_OF_TREE = "the row is a message of a tree without message_tree_id, so the messages of a tree cannot be found"


@dataclass(frozen=True, eq=False)
class Format:
    """How rows of one format are recognised and read.

    name: for --format. title: for people. required, optional: the columns that the readers use; a row fits when all
    required ones are there and not None, and `matches`, if given, accepts the values. readers: from a row and the names
    of its required columns to drafts, by kind, the main kind first; they raise BadRow. Rows with an equal `group` are
    merged into one by `merge` before they are read, a single one too. unusable: why rows are refused of which a kind
    without a reader is wanted.
    """

    name: str
    title: str
    required: tuple[str, ...]
    readers: Readers
    optional: tuple[str, ...] = ()
    matches: Callable[[Row], bool] | None = None
    group: Callable[[Row], Hashable] | None = None
    merge: Callable[[list[Row]], Row] | None = None
    unusable: str = ""

    @cached_property
    def columns(self) -> frozenset[str]:
        """All columns that the readers use: what else a row holds is kept in its prompt's meta."""
        return frozenset(self.required + self.optional)

    @cached_property
    def kinds(self) -> tuple[RecordKind, ...]:
        """What rows can be read as, the main kind first; prompts alone come last."""
        return tuple(self.readers)

    @cached_property
    def is_answer(self) -> bool:
        """Whether a row is one answer to one prompt, which other columns may grade."""
        return self.kinds[:1] == ("demonstrations",)

    def lacks(self, row: Row) -> list[str]:
        """The required columns that are not there, or empty."""
        return [column for column in self.required if row.get(column) is None]

    def fits(self, row: Row) -> bool:
        """Whether the row has the required columns, filled, and values of the right form."""
        return not self.lacks(row) and (self.matches is None or self.matches(row))


def _demonstrations(name: str, title: str, required: tuple[str, str], optional: tuple[str, ...] = ()) -> Format:
    """A prompt in the first column and its answer in the second."""
    by_kind: Readers = {"demonstrations": readers.answer, "prompts": readers.prompt}
    return Format(name, title, required, by_kind, optional)


def _conversations(name: str, title: str, column: str, optional: tuple[str, ...] = ()) -> Format:
    """A conversation that ends with the answer."""
    by_kind: Readers = {"demonstrations": readers.conversation, "prompts": readers.open_conversation}
    return Format(name, title, (column,), by_kind, optional)


def _pairs(name: str, title: str, required: tuple[str, str, str], optional: tuple[str, ...] = ()) -> Format:
    """A prompt, as text or as a conversation, with a chosen and a rejected response."""
    by_kind: Readers = {"rankings": readers_paired.prompted_pair, "prompts": readers.open_prompt}
    return Format(name, title, required, by_kind, (*optional, "labeler"))


def _choices(name: str, title: str, required: tuple[str, str, str, str], optional: tuple[str, ...] = ()) -> Format:
    """A prompt, two responses, and which of them was chosen."""
    by_kind: Readers = {"rankings": readers_ranked.compared, "prompts": readers_ranked.first_questions}
    return Format(name, title, required, by_kind, (*optional, "labeler"))


# fmt: off
FORMATS: tuple[Format, ...] = (
    # demonstrations
    _demonstrations("prompt-completion", "TRL: prompt and completion", ("prompt", "completion"), ("text",)),
    _demonstrations("prompt-response", "prompt and response", ("prompt", "response"), ("text",)),
    _demonstrations("prompt-output", "prompt and output", ("prompt", "output"), ("text",)),
    _demonstrations("question-answer", "GSM8K: question and answer", ("question", "answer")),
    _demonstrations("question-solution", "question and solution", ("question", "solution")),
    _demonstrations("problem-solution", "MATH: problem and solution", ("problem", "solution"), ("answer",)),
    _demonstrations("problem-answer", "problem and answer", ("problem", "answer")),
    _demonstrations("openmath", "OpenMathInstruct: problem and generated solution", ("problem", "generated_solution")),
    _demonstrations("query-response", "ms-swift, MetaMath: query and response", ("query", "response")),
    _demonstrations("input-output", "Nemotron: input and output", ("input", "output")),
    _demonstrations("inputs-targets", "FLAN, P3: inputs and targets", ("inputs", "targets")),
    _demonstrations("user-assistant", "user and assistant", ("user", "assistant")),
    _demonstrations("human-assistant", "human and assistant", ("human", "assistant")),
    _demonstrations("alpaca", "Alpaca: instruction, input and output", ("instruction", "output"), ("prompt", "text")),
    _demonstrations("dolly", "Dolly: instruction, context and response", ("instruction", "response"), ("text",)),
    _demonstrations("orca", "OpenOrca: question and response", ("question", "response")),
    Format("self-instruct", "Self-Instruct: an instruction with inputs and outputs", ("instruction", "instances"),
           {"demonstrations": readers.instances, "prompts": readers.open_instances}),
    _conversations("messages", "TRL: a conversation that ends with the answer", "messages", ("prompt", "text")),
    _conversations("sharegpt", "ShareGPT, LIMA: conversations", "conversations", ("text",)),
    _conversations("conversation", "LMSYS-Chat, Capybara: a conversation", "conversation", ("text",)),
    _conversations("gemini", "Gemini: contents with parts", "contents"),
    Format("ultrachat", "UltraChat: a list of texts in turn", ("data",),
           {"demonstrations": readers.conversation, "prompts": readers.open_conversation},
           matches=readers.is_texts_in_turn),
    Format("messages-completion", "a conversation and its answer", ("messages", "completion"),
           {"demonstrations": readers.continued, "prompts": readers.open_conversation}),
    # rankings of two
    Format("preference", "TRL: chosen and rejected, with or without their prompt", ("chosen", "rejected"),
           {"rankings": readers_paired.pair, "prompts": readers_paired.pair_prompt},
           ("prompt", "labeler", "response")),
    Format("hh-rlhf", "HH-RLHF: chosen and rejected dialogues", ("chosen", "rejected"),
           {"rankings": readers_paired.hh_pair, "prompts": readers_paired.hh_prompt}, ("prompt", "labeler"),
           matches=readers_paired.is_hh_pair),
    _pairs("alpaca-preference", "Alpaca's prompt with chosen and rejected", ("instruction", "chosen", "rejected")),
    _pairs("orca-dpo", "Orca DPO pairs: question, chosen and rejected", ("question", "chosen", "rejected")),
    _pairs("input-pair", "distilabel: input, chosen and rejected", ("input", "chosen", "rejected")),
    Format("context-pair", "ColossalChat: the conversation in context", ("context", "chosen", "rejected"),
           {"rankings": readers_paired.prompted_pair, "prompts": readers.open_prompt}, ("labeler",),
           matches=readers_paired.is_context_pair),
    _pairs("conversations-pair", "LLaMA-Factory: conversations, chosen and rejected",
           ("conversations", "chosen", "rejected")),
    _pairs("messages-pair", "messages, chosen and rejected", ("messages", "chosen", "rejected"), ("prompt",)),
    Format("chosen-messages", "LLaMA-Factory v1: chosen_messages and rejected_messages",
           ("chosen_messages", "rejected_messages"),
           {"rankings": readers_paired.pair, "prompts": readers_paired.pair_prompt}, ("prompt", "labeler")),
    _pairs("chosen-response", "NeMo: chosen_response and rejected_response",
           ("prompt", "chosen_response", "rejected_response")),
    _pairs("query-pair", "ms-swift: query, response and rejected_response", ("query", "response", "rejected_response")),
    Format("rejected-response", "ms-swift: messages and rejected_response", ("messages", "rejected_response"),
           {"rankings": readers_paired.rejected_beside, "prompts": readers.open_conversation}, ("prompt",)),
    Format("ultrafeedback-binarized", "UltraFeedback, binarized: chosen and rejected with scores",
           ("prompt", "chosen", "rejected", "score_chosen", "score_rejected"),
           {"rankings": readers_paired.prompted_pair, "prompts": readers.prompt}, ("messages", "prompt_id")),
    Format("stack-exchange", "Stack Exchange pairs: response_j is better than response_k",
           ("question", "response_j", "response_k"),
           {"rankings": readers_ranked.better_first, "prompts": readers.prompt}),
    Format("openai-preference", "OpenAI: input, preferred_output and non_preferred_output",
           ("input", "preferred_output", "non_preferred_output"),
           {"rankings": readers_ranked.openai_preference, "prompts": readers_ranked.openai_prompt}),
    Format("shp", "Stanford Human Preferences: two replies to a post",
           ("history", "human_ref_A", "human_ref_B", "labels"),
           {"rankings": readers_ranked.shp, "prompts": readers_ranked.shp_prompt}),
    Format("helpsteer3", "HelpSteer3: two responses and a preference from -3 to 3",
           ("context", "response1", "response2", "overall_preference"),
           {"rankings": readers_ranked.preference_strength, "prompts": readers_ranked.helpsteer_prompt}),
    Format("helpsteer2-preference", "HelpSteer2: two responses and a preference from -3 to 3",
           ("prompt", "response_1", "response_2", "preference_strength"),
           {"rankings": readers_ranked.preference_strength, "prompts": readers_ranked.helpsteer_prompt}),
    Format("webgpt", "WebGPT: two answers with scores", ("question", "answer_0", "answer_1", "score_0", "score_1"),
           {"rankings": readers_ranked.webgpt, "prompts": readers_ranked.webgpt_prompt}),
    _choices("alpaca-farm", "AlpacaFarm: output_1, output_2 and preference",
             ("instruction", "output_1", "output_2", "preference")),
    _choices("pku-saferlhf", "PKU-SafeRLHF: the better of two responses",
             ("prompt", "response_0", "response_1", "better_response_id"),
             ("is_response_0_safe", "is_response_1_safe")),
    _choices("arena", "LMArena: two responses and a winner", ("prompt", "response_a", "response_b", "winner")),
    Format("arena-kaggle", "LMSYS on Kaggle: two responses and three columns of who won",
           ("prompt", "response_a", "response_b", "winner_model_a", "winner_model_b", "winner_tie"),
           {"rankings": readers_ranked.arena_kaggle, "prompts": readers_ranked.first_questions}),
    Format("arena-conversations", "Chatbot Arena: two conversations and a winner",
           ("conversation_a", "conversation_b", "winner"),
           {"rankings": readers_ranked.conversations_compared, "prompts": readers_ranked.open_first}, ("judge",)),
    Format("label-studio", "Label Studio: its JSON export of pairwise choices", ("data", "annotations"),
           {"rankings": readers_ranked.label_studio, "prompts": readers_ranked.label_studio_prompt},
           matches=readers_ranked.is_label_studio),
    Format("label-studio-min", "Label Studio: its JSON_MIN export of choices", ("prompt", "answer1", "answer2"),
           {"rankings": readers_ranked.label_studio_min, "prompts": readers.prompt}, ("annotator",),
           matches=readers_ranked.is_label_studio_min),
    # rankings of many
    Format("ranking", "a prompt with K ranked responses", ("prompt", "responses", "ranks"),
           {"rankings": readers_ranked.ranking, "prompts": readers.prompt}, ("labeler",)),
    Format("scored-responses", "a prompt with K scored responses", ("prompt", "responses", "scores"),
           {"rankings": readers_ranked.scored_responses, "prompts": readers.prompt}, ("labeler",)),
    Format("ultrafeedback", "UltraFeedback: scored completions", ("instruction", "completions"),
           {"rankings": readers_ranked.ultrafeedback, "prompts": readers.prompt}),
    Format("nectar", "Nectar: ranked answers", ("prompt", "answers"),
           {"rankings": readers_ranked.nectar, "prompts": readers.prompt}),
    Format("summarize", "OpenAI's summarize-from-feedback comparisons", ("info", "summaries", "choice"),
           {"rankings": readers_ranked.summaries, "prompts": readers_ranked.summaries_prompt}, ("worker",)),
    Format("argilla", "Argilla: its export of a ranking question",
           ("prompt", "response-1", "response-2", "ranking.responses"),
           {"rankings": readers_ranked.argilla, "prompts": readers.prompt},
           (*(f"response-{number}" for number in range(3, 10)), "ranking.responses.status", "ranking.responses.users")),
    # rankings in several rows
    Format("helpsteer", "HelpSteer and HelpSteer2: a rated response a row",
           ("prompt", "response", "helpfulness", "correctness", "coherence", "complexity", "verbosity"),
           {"rankings": readers_ranked.helpsteer, "demonstrations": readers_ranked.helpsteer,
            "prompts": readers_ranked.helpsteer_prompt}),
    Format("unpaired", "an answer a row, labelled good or bad (TRL's KTO columns)", ("prompt", "completion", "label"),
           {"rankings": readers.answer, "demonstrations": readers.answer, "prompts": readers.prompt}),
    Format("scored", "an answer a row, with a score", ("prompt", "response", "score"),
           {"rankings": readers.answer, "demonstrations": readers.answer, "prompts": readers.prompt}),
    Format("oasst", "OpenAssistant: a tree of messages", ("message_tree_id", "prompt"),
           {"rankings": trees.rankings, "demonstrations": trees.demonstrations, "prompts": trees.prompts},
           ("tree_state",), matches=trees.is_tree),
    Format("oasst-messages", "OpenAssistant: a message a row", ("message_id", "message_tree_id", "text", "role"),
           {"rankings": trees.rankings, "demonstrations": trees.demonstrations, "prompts": trees.prompts},
           trees.MESSAGE_COLUMNS, group=trees.by_tree, merge=trees.tree_of),
    # the rest
    Format("prompt", "prompts alone", ("prompt",), {"prompts": readers.prompt}),
    Format("instruction", "instructions alone", ("instruction",), {"prompts": readers.prompt}),
    Format("question", "questions alone", ("question",), {"prompts": readers.prompt}),
    Format("query", "queries alone", ("query",), {"prompts": readers.prompt}),
    Format("problem", "problems alone", ("problem",), {"prompts": readers.prompt}),
    Format("mt-bench", "MT-Bench: the first question of its turns", ("question_id", "turns"),
           {"prompts": readers.first_turn}, matches=readers.is_asked_in_turns),
    Format("text", "plain text", ("text",), {"texts": readers.text}, matches=readers.is_plain_text),
    # recognised, and refused with the reason
    Format("step-labels", "TRL: an answer's steps and their labels", ("prompt", "completions", "labels"),
           {"prompts": readers.prompt}, unusable=STEPS),
    Format("prm800k", "PRM800K: rated steps", ("question", "label"),
           {"prompts": readers.prm800k_prompt}, ("labeler",), matches=readers.is_prm800k, unusable=STEPS),
    Format("xlam", "xLAM: a query, its tools and calls", ("query", "answers", "tools"), {}, unusable=TOOL_CALLS),
    Format("glaive", "Glaive: a chat with function calls", ("system", "chat"), {}, unusable=TOOL_CALLS),
    Format("tree-messages", "messages of trees, without message_tree_id", ("message_id", "text", "role"),
           {}, unusable=PARTS_OF_TREE),
)
# fmt: on

GRADED = ("unpaired", "scored")  # of rows of any format of demonstrations, with a verdict or a score
KNOWN_COLUMNS: frozenset[str] = frozenset().union(*(format.columns for format in FORMATS))
# The columns that may be spelled in another way, by the spelling in which names are compared.
SPELLINGS: Mapping[str, str] = {fold_name(column): column for column in sorted(KNOWN_COLUMNS)}

# Always lists or objects, so that a table's cell is parsed. Columns that may hold text as well (prompt, chosen ...) are
# not among them: an answer that happens to be JSON is an answer.
LIST_COLUMNS: frozenset[str] = frozenset(
    "messages conversations conversation_a conversation_b contents responses ranks completions answers info summaries "
    "annotations ranking.responses ranking.responses.status ranking.responses.users turns".split()
)


def format_named(name: str) -> Format:
    """The format of a name. UserError with the nearest and all names."""
    names = [format.name for format in FORMATS]
    if name in names:
        return FORMATS[names.index(name)]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(f"--format {name}: there is no such format; {hint}known: {', '.join(names)}")
