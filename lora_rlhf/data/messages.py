"""From a row's values to messages and answers: texts, dialogues, and lists of messages in the forms that people use."""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TypeAlias

from lora_rlhf.data.cells import is_messages_as_text, parse_list
from lora_rlhf.data.names import Meaning, column_meaning, name_words
from lora_rlhf.data.refusals import BadRow, listed_names
from lora_rlhf.data.schema import ROLES, Message, Prompt, Turns, require_text
from lora_rlhf.data.verdicts import find_verdict, is_blank, is_learned

Row: TypeAlias = dict[str, Any]

HH_TURN = re.compile(r"\n\n(Human|Assistant):")
HH_ROLES = {"Human": "user", "Assistant": "assistant"}
# who speaks, in the words of ShareGPT, of OpenAI and of others
SPEAKERS = {
    **dict.fromkeys(("human", "user", "prompter", "customer", "usr"), "user"),
    **dict.fromkeys(
        ("gpt", "chatgpt", "bard", "bing", "model", "assistant", "bot", "ai", "chatbot", "llm"), "assistant"
    ),
    **dict.fromkeys(("system", "developer", "sys"), "system"),
}
SPOKEN = ("user", "assistant")
TOOL_ROLES = frozenset(
    "tool tools function functions tool_call tool_calls function_call function_response tool_response tool_result "
    "observation ipython environment".split()
)
THOUGHT_ROLES = frozenset("thought thinking reasoning think analysis".split())
ROLE_KEYS = ("role", "from", "speaker", "author")
CONTENT_KEYS = ("content", "value", "text", "message", "parts")
# A turn that holds both sides.
PAIR_KEYS = (
    *(("input", "output"), ("human", "assistant"), ("user", "assistant"), ("question", "answer"), ("human", "gpt")),
    *(("prompt", "response"), ("prompt", "completion"), ("instruction", "output"), ("query", "response")),
)
NOT_READ: dict[Meaning, str] = {
    "tools": "the row holds a tool call, and no stage here learns tool calls yet",
    "thought": "the row holds a thought before its answer, and no stage here learns thoughts yet",
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
SWITCHES = frozenset("on off true false yes no high medium low none auto default".split())
# What stands for an image in a text: a mark at the edge of a line (within one it may be HTML), or a path in marks.
MEDIA_MARK = re.compile(
    r"(?:^|\n)[ \t]*<(image|audio|video)>|<(image|audio|video)>[ \t]*(?:\n|$)|<(?:img|audio|video)>[^<>]{1,300}</"
    r"|<\|(?:image|video|audio|vision_start|img)[^|<>]*\|>|<image_?\d+>"
)


# ---------------------------------------------------------------------------------------------------------------------
# from a value to messages


def to_turns(value: Any, name: str) -> Turns:
    """The messages of a column: a text (one user's message, or a dialogue in HH-RLHF's form) or a list of messages.

    name: of the column, for messages. A list may hold messages, or objects with both sides of a turn. BadRow for
    anything else.
    """
    if isinstance(value, str):
        if not is_messages_as_text(value):
            return hh_messages(value) if is_hh_dialogue(value) else (Message("user", value),)
        value = list_in_text(value, name)
    if not isinstance(value, list | tuple):
        raise BadRow(f"{name} is neither text nor a list of messages", f"got {type(value).__name__}")
    turns: list[Message] = []
    for item in value:
        if type(item) is dict and len(item) == 2 and item.get("role") in SPOKEN and type(item.get("content")) is str:
            turns.append(Message(item["role"], item["content"]))  # most messages, in half the time
        else:
            turns += _messages_of(item, name)
    return tuple(turns)


def list_in_text(value: Any, name: str) -> Any:
    """The list that a text holds; any other value as it is. BadRow for a text that begins as one and is none."""
    if not isinstance(value, str) or value[:1] not in ("[", "{"):
        return value
    parsed = parse_list(value)
    if isinstance(parsed, BadRow):
        raise parsed
    if isinstance(parsed, str):
        raise BadRow("a list is written as text that cannot be read", name)
    return parsed


def _messages_of(item: Any, name: str) -> tuple[Message, ...]:
    """The message of {role, content} or {from, value}; both of {human, assistant}; () for a blank system message.

    Many sets write a blank system message for "no system prompt", and some templates refuse the role.
    """
    is_trained = True
    try:
        role, content = item["role"], item["content"]
    except (KeyError, TypeError, IndexError):
        if not isinstance(item, dict):
            detail = f"an item is {type(item).__name__}, not an object"
            raise BadRow(f"{name} holds a message without role and content", detail) from None
        if turns := _both_sides(item):
            return turns
        role, content, is_trained = _role_and_content(item, name)
    else:
        if len(item) > 2:
            is_trained = _read_keys(item, ("role", "content"), role)
    if role not in ROLES:
        role = _role(role)
    if not isinstance(content, str):
        content = joined_parts(content)
    if role == "system" and (content is None or (isinstance(content, str) and not content.strip())):
        return ()
    return (Message(role, content, is_trained),)


def _both_sides(item: Row) -> Turns:
    """The turns of an object with the question and the answer, and a system message if it holds one."""
    if any(key in item for key in ROLE_KEYS):
        return ()
    names = {key.lower(): key for key in item}
    for asked, answered in PAIR_KEYS:
        if asked in names and answered in names:
            used = [names[key] for key in (asked, answered, "system") if key in names]
            is_trained = _read_keys(item, used, "assistant")
            system = item[names["system"]] if "system" in names else None
            before = () if is_blank(system) else (Message("system", require_text(system, "a system message")),)
            answer = Message("assistant", item[names[answered]], is_trained)
            return (*before, Message("user", item[names[asked]]), answer)
    return ()


def _role_and_content(item: Row, name: str) -> tuple[Any, Any, bool]:
    """The role, the content, and whether an answer is to be learned, of a message in other words than TRL's."""
    role_key = next((key for key in ROLE_KEYS if key in item), None)
    content_key = next((key for key in CONTENT_KEYS if key in item), None)
    role = None if role_key is None else _role(item[role_key])
    is_trained = role is None or _read_keys(item, (role_key, content_key), role)
    if role_key is None or content_key is None:
        raise BadRow(f"{name} holds a message without role and content", f"its keys: {listed_names(list(item))}")
    return role, item[content_key], is_trained


def _role(role: Any) -> Any:
    if not isinstance(role, str):
        return role
    word = role.strip().lower().replace("-", "_")
    if word in TOOL_ROLES or word in THOUGHT_ROLES:
        fault = NOT_READ["tools" if word in TOOL_ROLES else "thought"]
        raise BadRow(fault, f"a message's role is {role[:40]!r}")
    return SPEAKERS.get(word, role)


def joined_parts(content: Any) -> Any:
    """The text of a list of {"type": "text", "text": ...}, of texts, or of Gemini's {"parts": [...]}.

    What is no list is returned as it is.
    """
    if isinstance(content, dict):
        content = content.get("parts", [content])
    if not isinstance(content, list | tuple):
        return content
    return "".join([_text_of_part(part) for part in content])


def _text_of_part(part: Any) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, dict) else None
    if kind in ("text", "input_text", "output_text"):
        text = next((part[key] for key in ("text", "value", "content") if part.get(key) is not None), None)
        if text is not None:
            return require_text(text, "a message's content")
    # without a type, as in Gemini's parts, the keys say what it is
    names = [kind] if kind != "text" and isinstance(kind, str) else list(part) if isinstance(part, dict) else []
    words = {word for name in names for word in name_words(name)}
    for meaning, part_words in PART_WORDS.items():
        if part_words & words:
            raise BadRow(NOT_READ[meaning], f"a message has a part {names[0][:40]!r}")
    raise BadRow("a message holds parts that are not text", ", ".join(names)[:40])


@lru_cache(maxsize=1024)
def _key_meaning(key: str) -> Meaning | None:
    words = set(name_words(key))
    return "weight" if words and words <= {"loss", "mask"} else column_meaning(key)


def _read_keys(item: Row, used: Sequence[str | None], role: Any) -> bool:
    """Whether an answer is to be learned, by the unused keys of its message. BadRow for one that is not read here."""
    is_trained = True
    for key, value in item.items():
        meaning = _key_meaning(key)
        if key in used or meaning in (None, "metadata", "score") or is_blank(value):
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
    """Whether a value is a thought, and no switch ("on"), number or mode of thinking."""
    return not is_blank(value) and not isinstance(value, bool | int | float) and str(value).lower() not in SWITCHES


def require_no_media(text: str) -> None:
    """Raises BadRow if a mark in a user's text stands for an image or a sound."""
    if mark := MEDIA_MARK.search(text):
        tag = mark[1] or mark[2]
        if tag is None or f"</{tag}" not in text:
            raise BadRow(NOT_READ["media"], f"{mark[0].strip()[:40]!r} in the prompt")


# ---------------------------------------------------------------------------------------------------------------------
# dialogues as text


def is_hh_dialogue(text: str) -> bool:
    """Whether a text is written in HH-RLHF's form: "\\n\\nHuman: ...\\n\\nAssistant: ..."."""
    return text.lstrip().startswith("Human:") and "\n\nAssistant:" in text


def hh_messages(text: str) -> Turns:
    """The turns of an HH-RLHF dialogue (arXiv 2204.05862); an empty last "Assistant:" asks for the answer."""
    _, *parts = HH_TURN.split("\n\n" + text.lstrip())
    return tuple(Message(HH_ROLES[who], said.strip()) for who, said in zip(parts[::2], parts[1::2], strict=True))


# ---------------------------------------------------------------------------------------------------------------------
# prompts and answers


def to_prompt(value: Any) -> Prompt:
    """The prompt of a `prompt` column."""
    return Prompt(to_prompt_turns(value, "prompt"))


def to_prompt_turns(value: Any, name: str) -> Turns:
    """The messages of a prompt's column; the empty "Assistant:" at a dialogue's end is left out."""
    turns = to_turns(value, name)
    if isinstance(value, str) and len(turns) > 1 and turns[-1] == Message("assistant", ""):
        return turns[:-1]
    return turns


def to_answer(value: Any, name: str) -> Message:
    """The answer of a column that holds text, an assistant's message, or a list with one."""
    if isinstance(value, str):
        if not is_messages_as_text(value):
            return Message("assistant", require_text(value, f"the {name}"))
        value = list_in_text(value, name)
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list | tuple):
        require_text(value, f"the {name}")
    if value and not any(isinstance(item, dict) for item in value):
        raise BadRow(f"{name} is a list, not one answer", f"{len(value)} items; write one row per answer")
    turns = to_turns(value, name)
    if len(turns) != 1 or turns[0].role != "assistant":
        raise BadRow(f"{name} is not one assistant's message")
    return turns[0]


def to_response(value: Any, name: str) -> str:
    """The text of `to_answer`."""
    if isinstance(value, str) and not is_messages_as_text(value):
        return require_text(value, f"the {name}")
    return to_answer(value, name).content


def split_answer(turns: Turns, name: str) -> tuple[Turns, Message]:
    """(the messages before, the assistant's last message). BadRow if there is none."""
    if not turns or turns[-1].role != "assistant":
        raise BadRow(f"{name} does not end with an assistant's message")
    if len(turns) > 1 and turns[-2].role == "assistant":
        raise BadRow("two of the assistant's messages follow one another", name)
    return turns[:-1], turns[-1]


def without_answer(turns: Turns) -> Turns:
    """The messages up to the last of a user."""
    return turns[:-1] if turns and turns[-1].role == "assistant" else turns
