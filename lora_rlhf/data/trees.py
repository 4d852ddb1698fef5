"""OpenAssistant's trees of messages, one tree or one message a row: every prompter's turn with its ranked replies."""

from collections.abc import Hashable, Sequence
from typing import Any

from lora_rlhf.data.messages import Row
from lora_rlhf.data.readers import Draft
from lora_rlhf.data.refusals import BadRow
from lora_rlhf.data.schema import Message, Turns

ROLE_BY_NAME = {"prompter": "user", "assistant": "assistant"}
# of a message's row, beside its id, tree, text and role
MESSAGE_COLUMNS = (
    *("parent_id", "rank", "deleted", "user_id", "created_date", "review_count", "review_result", "synthetic"),
    *("model_name", "detoxify", "tree_state", "emojis", "labels"),
)
MAX_TURNS = 200  # of one conversation; the longest of the set has about ten

PrompterTurn = tuple[Turns, list[Row]]  # the conversation up to it, and the replies to it


def read_tree_rankings(row: Row, *names: str) -> list[Draft]:
    """Drafts: one ranking for every prompter's turn with at least two ranked replies."""
    drafts = []
    for turns, replies in _list_prompter_turns(row):
        ranked = _ranked_replies(replies)
        if len(ranked) >= 2:
            texts = tuple(_make_message(reply).content for reply in ranked)
            drafts.append(Draft(turns, texts, tuple(reply["rank"] + 1 for reply in ranked)))
    if not drafts:
        raise BadRow("the tree has no prompt with two ranked replies")
    return drafts


def read_tree_demonstrations(row: Row, *names: str) -> list[Draft]:
    """Drafts: the best-ranked reply to every prompter's turn; if none is ranked, its only reply."""
    drafts = []
    for turns, replies in _list_prompter_turns(row):
        candidates = _ranked_replies(replies) or (replies if len(replies) == 1 else [])
        if candidates:
            best = min(candidates, key=lambda reply: reply.get("rank") or 0)
            drafts.append(Draft(turns, (_make_message(best).content,)))
    if not drafts:
        raise BadRow("the tree has no prompt with a reply")
    return drafts


def read_tree_prompts(row: Row, *names: str) -> list[Turns]:
    """Prompts: every prompter's turn with the conversation before it."""
    return [turns for turns, _ in _list_prompter_turns(row)]


def is_tree(row: Row) -> bool:
    """Whether the row holds a whole tree."""
    return isinstance(row["prompt"], dict)


def tree_key(row: Row) -> Hashable:
    """A key that the messages of one tree share."""
    return repr(row["message_tree_id"])


def merge_tree(rows: list[Row]) -> Row:
    """The row of a tree, made of the rows of its messages. BadRow if its first message is not among them."""
    messages: dict[Any, Row] = {repr(row["message_id"]): {**row, "replies": []} for row in rows}
    first_messages = []
    for message in messages.values():
        parent_id = message.get("parent_id")
        if parent_id is None:
            first_messages.append(message)
        elif repr(parent_id) in messages:
            messages[repr(parent_id)]["replies"].append(message)
    if len(first_messages) != 1:
        raise BadRow("the tree's first message is not among the rows", f"found {len(first_messages)}")
    return {"message_tree_id": rows[0]["message_tree_id"], "prompt": first_messages[0]}


def _list_prompter_turns(row: Row) -> list[PrompterTurn]:
    """Every prompter's turn, in the order of the tree. Deleted messages end a branch."""
    prompter_turns: list[PrompterTurn] = []
    stack: list[tuple[Turns, Row]] = [((), row["prompt"])]
    while stack:
        turns_before, message = stack.pop()
        if message.get("deleted"):
            continue
        turns = (*turns_before, _make_message(message))
        if len(turns) > MAX_TURNS:
            raise BadRow("the tree is too deep", f"more than {MAX_TURNS} turns")
        replies = [reply for reply in _list_replies(message) if not reply.get("deleted")]
        if turns[-1].role == "user":
            prompter_turns.append((turns, replies))
        stack.extend((turns, reply) for reply in reversed(replies))
    if not prompter_turns:
        raise BadRow("the tree holds no prompt")
    return prompter_turns


def _make_message(node: Row) -> Message:
    """The message of a node of the tree."""
    role: Any = node.get("role")
    text: Any = node.get("text")
    return Message(ROLE_BY_NAME.get(role, role) if isinstance(role, str) else role, text)


def _list_replies(node: Row) -> Sequence[Row]:
    """The replies to a message. BadRow if they are not a list of messages."""
    replies = node.get("replies") or ()
    if not isinstance(replies, list | tuple) or not all(isinstance(reply, dict) for reply in replies):
        raise BadRow("a message's replies are not a list of messages")
    return replies


def _ranked_replies(replies: Sequence[Row]) -> list[Row]:
    """The replies that people ranked, 0 for the best."""
    ranked = [reply for reply in replies if reply.get("rank") is not None]
    for reply in ranked:
        if isinstance(reply["rank"], bool) or not isinstance(reply["rank"], int | float):
            raise BadRow("a reply's rank is not a number", f"got {type(reply['rank']).__name__}")
    return ranked
