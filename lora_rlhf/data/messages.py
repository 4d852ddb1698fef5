"""From a row's values to messages and answers: texts, dialogues, and lists of messages in the forms that people use."""

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TypeAlias

from lora_rlhf.data.cells import is_messages_as_text, parse_list
from lora_rlhf.data.names import Meaning, column_meaning, name_words
from lora_rlhf.data.refusals import BadRow, listed_names
from lora_rlhf.data.schema import ROLES, Message, Prompt, Turns, require_text
from lora_rlhf.data.thoughts import CLOSE, join_thought
from lora_rlhf.data.tools import CALL_KEYS, read_calls
from lora_rlhf.data.verdicts import find_verdict, is_blank, is_learned

Row: TypeAlias = dict[str, Any]

HH_TURN = re.compile(r"\n\n(Human|Assistant):")
HH_ROLES = {"Human": "user", "Assistant": "assistant"}
# names of the speakers in ShareGPT's data, in OpenAI's and in others' -> role
SPEAKERS = {
    **dict.fromkeys(("human", "user", "prompter", "customer", "usr"), "user"),
    **dict.fromkeys(
        ("gpt", "chatgpt", "bard", "bing", "model", "assistant", "bot", "ai", "chatbot", "llm"), "assistant"
    ),
    **dict.fromkeys(("system", "developer", "sys"), "system"),
    **dict.fromkeys(("tool", "tools", "function", "functions", "observation", "ipython", "environment"), "tool"),
    **dict.fromkeys(("function_response", "tool_response", "tool_result"), "tool"),
}
TURN_ROLES = ("user", "assistant")
CALL_ROLES = ("tool_call", "tool_calls", "function_call")  # the assistant's messages whose content is a call
THOUGHT_ROLES = frozenset("thought thinking reasoning think analysis".split())
ROLE_KEYS = ("role", "from", "speaker", "author")
CONTENT_KEYS = ("content", "value", "text", "message", "parts")
# (question, answer): keys of an object that holds both.
PAIR_KEYS = (
    *(("input", "output"), ("human", "assistant"), ("user", "assistant"), ("question", "answer"), ("human", "gpt")),
    *(("prompt", "response"), ("prompt", "completion"), ("instruction", "output"), ("query", "response")),
)
NOT_READ: dict[Meaning, str] = {
    "tools": "the row holds tools or calls in a place where they are not read",
    "thought": "the row holds a thought in a place where it is not read",
    "media": "the row points at an image, a sound or a video, and models here read text alone",
    "choices": "the row holds choices of its question that are not in the prompt",
}
PART_WORDS: dict[Meaning, frozenset[str]] = {
    "media": frozenset("image audio video file document media inline".split()),
    "tools": frozenset("tool function".split()),
    "thought": frozenset("thinking thought reasoning".split()),
}
VERDICTS = ("label", "rating", "good", "bad")
PARTS = ("system", "history", "context")
THOUGHT_SETTINGS = frozenset("on off true false yes no high medium low none auto default".split())
# Marks of an image in a text: a tag at the edge of a line (within a line it may be HTML), or a path within tags.
MEDIA_MARK = re.compile(
    r"(?:^|\n)[ \t]*<(image|audio|video)>|<(image|audio|video)>[ \t]*(?:\n|$)|<(?:img|audio|video)>[^<>]{1,300}</"
    r"|<\|(?:image|video|audio|vision_start|img)[^|<>]*\|>|<image_?\d+>"
)


# ---------------------------------------------------------------------------------------------------------------------
# from a value to messages


def to_turns(value: Any, name: str) -> Turns:
    """The messages of a column: a text (one user's message, or a dialogue in HH-RLHF's form) or a list of messages.

    name: the column, for error messages. A list may hold messages, or objects with a question and its answer. BadRow
    for any other value.
    """
    if isinstance(value, str):
        if not is_messages_as_text(value):
            return hh_messages(value) if is_hh_dialogue(value) else (Message("user", value),)
        value = parse_list_in_text(value, name)
    if not isinstance(value, list | tuple):
        raise BadRow(f"{name} is neither text nor a list of messages", f"got {type(value).__name__}")
    turns: list[Message] = []
    for item in value:
        if (
            type(item) is dict
            and len(item) == 2
            and item.get("role") in TURN_ROLES
            and type(item.get("content")) is str
        ):
            turns.append(Message(item["role"], item["content"]))  # a fast way for most messages
        else:
            turns += _parse_message(item, name)
    return tuple(turns)


def parse_list_in_text(value: Any, name: str) -> Any:
    """The list that a text holds; any other value unchanged. BadRow for a text that begins as a list and is not one."""
    if not isinstance(value, str) or value[:1] not in ("[", "{"):
        return value
    parsed_value = parse_list(value)
    if isinstance(parsed_value, BadRow):
        raise parsed_value
    if isinstance(parsed_value, str):
        raise BadRow("a list is written as text that cannot be read", name)
    return parsed_value


def _parse_message(item: Any, name: str) -> tuple[Message, ...]:
    """The message of {role, content} or {from, value}; both of {human, assistant}; () for a blank system message.

    Many sets write a blank system message for "no system prompt", and some templates refuse the role.
    """
    if not isinstance(item, dict):
        detail = f"an item is {type(item).__name__}, not an object"
        raise BadRow(f"{name} holds a message without role and content", detail)
    if turns := _parse_question_and_answer(item):
        return turns
    role_key = next((key for key in ROLE_KEYS if key in item), None)
    content_key = next((key for key in CONTENT_KEYS if key in item), None)
    role = None if role_key is None else item[role_key]
    if role not in ROLES:
        role = _normalize_role(role)
    content = None if content_key is None else item[content_key]
    call_keys = [key for key in CALL_KEYS if role == "assistant" and not is_blank(item.get(key))]
    if role_key is None or (content_key is None and not call_keys):
        raise BadRow(f"{name} holds a message without role and content", f"its keys: {listed_names(list(item))}")
    read_keys = [role_key, content_key, *call_keys]
    if role in CALL_ROLES:
        return (_assistant_message(item, "", {str(role): content}, read_keys),)
    if role == "system" and (content is None or is_blank(join_parts(content))):
        return ()
    if role == "tool":
        return (_tool_message(item, content, read_keys),)
    if role == "assistant":
        return (_assistant_message(item, content, {key: item[key] for key in call_keys}, read_keys),)
    return (Message(role, join_parts(content), _is_trained_by_keys(item, read_keys, role)),)


def _assistant_message(item: Row, content: Any, calls: Row, read_keys: list[str | None]) -> Message:
    """An assistant's message, with its thought in a key of its own, and with its calls (by the key that holds them)."""
    tool_calls = tuple([call for key, value in calls.items() for call in read_calls(value, key)])
    content = "" if content is None and tool_calls else join_parts(content)
    for key, value in item.items():
        if key not in read_keys and _key_meaning(key) == "thought" and is_thought(value):
            content = add_thought(value, content, key)
            read_keys.append(key)
    return Message("assistant", content, _is_trained_by_keys(item, read_keys, "assistant"), tool_calls)


def _tool_message(item: Row, content: Any, read_keys: list[str | None]) -> Message:
    """A tool's result; one that is not text becomes JSON text."""
    if isinstance(content, list | tuple) and all(isinstance(part, dict) and "type" in part for part in content):
        content = join_parts(content)
    elif not isinstance(content, str):
        content = "" if content is None else json.dumps(content, ensure_ascii=False, default=str)
    _is_trained_by_keys(item, [*read_keys, "name"], "tool")  # BadRow for a key that is not read
    name, call_id = (str(item.get(key) or "") for key in ("name", "tool_call_id"))
    return Message("tool", content, name=name, call_id=call_id)


def add_thought(thought: Any, answer: Any, name: str) -> str:
    """The answer with a thought before it. name: the key or column that holds the thought.

    BadRow if the answer has another thought already.
    """
    if isinstance(thought, list | tuple) and len(thought) == 1:  # s1K: a list of the thoughts of each attempt
        thought = thought[0]
    thought, answer = require_text(thought, f"the {name}"), require_text(answer, "a message's content")
    if CLOSE not in answer:
        return join_thought(thought.strip("\n"), answer)
    if thought.strip() not in answer:
        raise BadRow("the answer has two thoughts", f"{name}, and one in its text")
    return answer


def _parse_question_and_answer(item: Row) -> Turns:
    """The turns of an object with a question and its answer, and with its system message if it has one; else ()."""
    if any(key in item for key in ROLE_KEYS):
        return ()
    key_by_lower_case = {key.lower(): key for key in item}
    for question_key, answer_key in PAIR_KEYS:
        if question_key in key_by_lower_case and answer_key in key_by_lower_case:
            keys = [key_by_lower_case[key] for key in (question_key, answer_key, "system") if key in key_by_lower_case]
            is_trained = _is_trained_by_keys(item, keys, "assistant")
            system = item[key_by_lower_case["system"]] if "system" in key_by_lower_case else None
            system_turns = () if is_blank(system) else (Message("system", require_text(system, "a system message")),)
            answer = Message("assistant", item[key_by_lower_case[answer_key]], is_trained)
            return (*system_turns, Message("user", item[key_by_lower_case[question_key]]), answer)
    return ()


def _normalize_role(role: Any) -> Any:
    """The role in this project's words; an unknown value is returned unchanged. BadRow for thoughts."""
    if not isinstance(role, str):
        return role
    speaker_word = role.strip().lower().replace("-", "_")
    if speaker_word in THOUGHT_ROLES:
        raise BadRow(NOT_READ["thought"], f"a message's role is {role[:40]!r}")
    return speaker_word if speaker_word in CALL_ROLES else SPEAKERS.get(speaker_word, role)


def join_parts(content: Any) -> Any:
    """The text of a list of {"type": "text", "text": ...}, of texts, or of Gemini's {"parts": [...]}.

    A value that is not a list is returned unchanged.
    """
    if isinstance(content, dict):
        content = content.get("parts", [content])
    if not isinstance(content, list | tuple):
        return content
    return "".join([_part_text(part) for part in content])


def _part_text(part: Any) -> str:
    """The text of one part. BadRow for an image, a tool call, a thought, and any other part that is not text."""
    if isinstance(part, str):
        return part
    part_type = part.get("type", "text") if isinstance(part, dict) else None
    if part_type in ("text", "input_text", "output_text"):
        text = next((part[key] for key in ("text", "value", "content") if part.get(key) is not None), None)
        if text is not None:
            return require_text(text, "a message's content")
    # without a type, as in Gemini's parts, the keys tell what it is
    names = list(part) if isinstance(part, dict) else []
    if isinstance(part_type, str) and part_type != "text":
        names = [part_type]
    words = {word for name in names for word in name_words(name)}
    for meaning, part_words in PART_WORDS.items():
        if part_words & words:
            raise BadRow(NOT_READ[meaning], f"a message has a part {names[0][:40]!r}")
    raise BadRow("a message holds parts that are not text", ", ".join(names)[:40])


@lru_cache(maxsize=1024)
def _key_meaning(key: str) -> Meaning | None:
    """What the name of a message's key tells about its value; None if it tells nothing."""
    words = set(name_words(key))
    return "weight" if words and words <= {"loss", "mask"} else column_meaning(key)


def _is_trained_by_keys(item: Row, read_keys: Sequence[str | None], role: Any) -> bool:
    """Whether an answer is to be learned, by the keys of its message that are not in `read_keys`.

    BadRow for a key that changes what the message means and that is not read here.
    """
    is_trained = True
    for key, value in item.items():
        meaning = _key_meaning(key)
        if key in read_keys or meaning in (None, "metadata", "score") or is_blank(value):
            continue
        if meaning == "weight":
            is_trained = is_trained and is_learned(key, value)
        elif meaning in VERDICTS:
            is_trained = is_trained and (role != "assistant" or find_verdict(key, meaning, value) is not False)
        elif meaning == "speaker":
            if SPEAKERS.get(str(value).strip().lower()) != SPEAKERS.get(str(role)):
                raise BadRow("a message has a key that is not read here", repr(key))
        elif meaning in NOT_READ and (meaning != "thought" or is_thought(value)):
            raise BadRow(NOT_READ[meaning], f"key {key!r} of a message")
        elif meaning in PARTS:
            raise BadRow("a message has a key that is not read here", repr(key))
    return is_trained


def is_thought(value: Any) -> bool:
    """Whether a value is a thought, and not a setting of thinking ("on", a number or a mode)."""
    return (
        not is_blank(value) and not isinstance(value, bool | int | float) and str(value).lower() not in THOUGHT_SETTINGS
    )


def require_no_media(text: str) -> None:
    """Raises BadRow if a mark in a user's text means an image or a sound."""
    if match := MEDIA_MARK.search(text):
        tag_name = match[1] or match[2]
        if tag_name is None or f"</{tag_name}" not in text:
            raise BadRow(NOT_READ["media"], f"{match[0].strip()[:40]!r} in the prompt")


# ---------------------------------------------------------------------------------------------------------------------
# dialogues as text


def is_hh_dialogue(text: str) -> bool:
    """Whether a text is written in HH-RLHF's form: "\\n\\nHuman: ...\\n\\nAssistant: ..."."""
    return text.lstrip().startswith("Human:") and "\n\nAssistant:" in text


def hh_messages(text: str) -> Turns:
    """The turns of an HH-RLHF dialogue (arXiv 2204.05862). An empty last "Assistant:" becomes an empty message."""
    _, *parts = HH_TURN.split("\n\n" + text.lstrip())
    return tuple(
        Message(HH_ROLES[speaker], content.strip()) for speaker, content in zip(parts[::2], parts[1::2], strict=True)
    )


# ---------------------------------------------------------------------------------------------------------------------
# prompts and answers


def to_prompt(value: Any) -> Prompt:
    """The prompt of a `prompt` column."""
    return Prompt(to_prompt_turns(value, "prompt"))


def to_prompt_turns(value: Any, name: str) -> Turns:
    """The messages of a prompt's column, without the empty "Assistant:" at a dialogue's end."""
    turns = to_turns(value, name)
    if isinstance(value, str) and len(turns) > 1 and turns[-1] == Message("assistant", ""):
        return turns[:-1]
    return turns


def to_answer(value: Any, name: str) -> Message:
    """The answer of a column that holds text, an assistant's message, or a list with one."""
    if isinstance(value, str):
        if not is_messages_as_text(value):
            return Message("assistant", require_text(value, f"the {name}"))
        value = parse_list_in_text(value, name)
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list | tuple):
        require_text(value, f"the {name}")
    if value and not any(isinstance(item, dict) for item in value):
        detail = f"it is a list of {len(value)}; write one row per answer"
        raise BadRow(f"{name} is not one assistant's message", detail)
    turns = to_turns(value, name)
    if len(turns) != 1 or turns[0].role != "assistant":
        raise BadRow(f"{name} is not one assistant's message")
    return turns[0]


def to_response(value: Any, name: str) -> str:
    """The text of `to_answer`. BadRow for an answer that calls a tool."""
    if isinstance(value, str) and not is_messages_as_text(value):
        return require_text(value, f"the {name}")
    return text_to_compare(to_answer(value, name))


def text_to_compare(answer: Message) -> str:
    """The text of an answer that is compared with others. BadRow if it calls a tool."""
    if answer.tool_calls:
        raise BadRow("a ranked answer calls a tool, and rankings are of texts", answer.tool_calls[0].name)
    return answer.content


def split_answer(turns: Turns, name: str) -> tuple[Turns, Message]:
    """(the messages before, the assistant's last message). BadRow if the last message is not an answer."""
    if not turns or turns[-1].role != "assistant":
        raise BadRow(f"{name} does not end with an assistant's message")
    if len(turns) > 1 and turns[-2].role == "assistant":
        raise BadRow("two of the assistant's messages follow one another", name)
    return turns[:-1], turns[-1]


def drop_answer(turns: Turns) -> Turns:
    """The messages without the assistant's message at their end, if there is one."""
    return turns[:-1] if turns and turns[-1].role == "assistant" else turns
