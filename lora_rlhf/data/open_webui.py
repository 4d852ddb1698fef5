"""Open WebUI's export of feedback: a thumb on one message of a chat, with a copy of the chat in the row."""

import re
from typing import Any

from lora_rlhf.data.messages import NOT_READ, Row
from lora_rlhf.data.refusals import BadRow

# The thoughts of an answer as Open WebUI shows them; it does not send them to the model again.
THOUGHT = re.compile(r'<details type="reasoning".*?</details>\s*', re.DOTALL)
OTHER_DETAILS = '<details type="'  # what a tool or a code interpreter gave, folded into the answer
THUMBS = {"1": "up", "-1": "down"}


def is_feedback(row: Row) -> bool:
    """Whether the row is one of the export: somebody's rating, what it is about, and the chat."""
    return all(isinstance(row[name], dict) for name in ("data", "meta", "snapshot"))


def to_chat(row: Row) -> Row:
    """The row of a chat log: the messages up to the rated answer, the thumb, and the correction where there is one.

    Whoever edits an answer in Open WebUI leaves the answer of the model beside their own (`originalContent`). The
    user's words on it (comment, reason, tags) are kept; nobody's name or id is. BadRow where the answer is not found.
    """
    messages, rated_id, settings = _find_chat(row)
    conversation: list[dict[str, Any]] = []
    message = messages.get(rated_id)
    if not isinstance(message, dict) or message.get("role") != "assistant":
        raise BadRow("the rated answer is not in the chat", f"meta.message_id is {str(rated_id)[:40]!r}")
    original = message.get("originalContent")
    content = message.get("content")
    is_corrected = isinstance(original, str) and isinstance(content, str) and original.strip() not in ("", content)
    answer = original if is_corrected else content
    while isinstance(message, dict):
        if len(conversation) == len(messages):
            raise BadRow("the chat's messages lead in a circle")
        if message.get("files"):
            raise BadRow(NOT_READ["media"], "a message has files")
        text = message.get("content") if conversation else answer
        conversation.insert(0, {"role": message.get("role"), "content": _plain_text(text)})
        parent_id = message.get("parentId")
        message = messages.get(parent_id) if isinstance(parent_id, str) else None
    if isinstance(system := settings.get("system"), str):
        conversation.insert(0, {"role": "system", "content": system})
    data = row["data"]
    about = {name: data[name] for name in ("comment", "reason", "tags") if data.get(name)}
    chat = {"messages": conversation, "thumb": THUMBS.get(str(data.get("rating")))} | about
    return chat | ({"correction": _plain_text(content)} if is_corrected else {})


def _find_chat(row: Row) -> tuple[dict[Any, Any], Any, Row]:
    """(the chat's messages by id, the id of the rated one, the chat's settings). BadRow if there is no chat."""
    found = row["snapshot"]
    while isinstance(found, dict) and "history" not in found:
        found = found.get("chat")
    history = found.get("history") if isinstance(found, dict) else None
    messages = history.get("messages") if isinstance(history, dict) else None
    if not isinstance(messages, dict):
        raise BadRow("the row holds no copy of its chat", "snapshot.chat.chat.history.messages")
    params, rated_id = found.get("params"), row["meta"].get("message_id")
    return messages, rated_id if isinstance(rated_id, str) else None, params if isinstance(params, dict) else {}


def _plain_text(text: Any) -> Any:
    """A message's text without thoughts. BadRow for a text with what tools gave, which nobody could learn to write."""
    if not isinstance(text, str):
        return text
    text = THOUGHT.sub("", text)
    if OTHER_DETAILS in text:
        raise BadRow(NOT_READ["tools"], "an answer of Open WebUI with what a tool gave in its text")
    return text
