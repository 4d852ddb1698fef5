"""OpenAssistant's trees of messages, one tree or one message a row: every prompter's turn with its ranked replies."""

from collections.abc import Hashable, Sequence
from typing import Any

from lora_rlhf.data.readers import Row
from lora_rlhf.data.refusals import BadRow
from lora_rlhf.data.schema import Demonstration, Message, Prompt, Ranking

ROLE_OF = {"prompter": "user", "assistant": "assistant"}
# of a message's row, beside its id, tree, text and role
MESSAGE_COLUMNS = (
    *("parent_id", "rank", "deleted", "user_id", "created_date", "review_count", "review_result", "synthetic"),
    *("model_name", "detoxify", "tree_state", "emojis", "labels"),
)
DEEPEST = 200  # turns of a conversation that are followed; the set's longest has about ten

Turn = tuple[Prompt, list[Row]]


def rankings(row: Row) -> list[Ranking]:
    """One ranking for every prompter's turn with at least two ranked replies."""
    found = []
    for prompt, replies in _turns(row):
        ranked = _ranked(replies)
        if len(ranked) >= 2:
            texts = tuple(_message(reply).content for reply in ranked)
            found.append(Ranking(prompt, texts, tuple(reply["rank"] + 1 for reply in ranked)))
    if not found:
        raise BadRow("the tree has no prompt with two ranked replies")
    return found


def demonstrations(row: Row) -> list[Demonstration]:
    """The best-ranked reply to every prompter's turn; where none is ranked, its only one."""
    found = []
    for prompt, replies in _turns(row):
        candidates = _ranked(replies) or (replies if len(replies) == 1 else [])
        if candidates:
            best = min(candidates, key=lambda reply: reply.get("rank") or 0)
            found.append(Demonstration(prompt, _message(best).content))
    if not found:
        raise BadRow("the tree has no prompt with a reply")
    return found


def prompts(row: Row) -> list[Prompt]:
    """Every prompter's turn, each with the conversation before it."""
    return [prompt for prompt, _ in _turns(row)]


def by_tree(row: Row) -> Hashable:
    """What the messages of one tree have in common."""
    return repr(row["message_tree_id"])


def tree_of(rows: list[Row]) -> Row:
    """The tree's row from its messages' rows. BadRow if its first message is not among them."""
    messages: dict[Any, Row] = {repr(row["message_id"]): {**row, "replies": []} for row in rows}
    roots = []
    for message in messages.values():
        parent = message.get("parent_id")
        if parent is None:
            roots.append(message)
        elif repr(parent) in messages:
            messages[repr(parent)]["replies"].append(message)
    if len(roots) != 1:
        raise BadRow("the tree's first message is not in the rows beside it", f"found {len(roots)}")
    return {"message_tree_id": rows[0]["message_tree_id"], "prompt": roots[0]}


def _turns(row: Row) -> list[Turn]:
    """Every prompter's turn with the conversation up to it, and the replies to it. Deleted messages end a branch."""
    found: list[Turn] = []
    waiting: list[tuple[tuple[Message, ...], Row]] = [((), row["prompt"])]
    while waiting:
        before, node = waiting.pop()
        if node.get("deleted"):
            continue
        messages = (*before, _message(node))
        if len(messages) > DEEPEST:
            raise BadRow("the tree is too deep", f"more than {DEEPEST} turns")
        replies = [reply for reply in _replies(node) if not reply.get("deleted")]
        if messages[-1].role == "user":
            found.append((Prompt(messages), replies))
        waiting.extend((messages, reply) for reply in reversed(replies))
    if not found:
        raise BadRow("the tree holds no prompt")
    return found


def _message(node: Row) -> Message:
    role: Any = node.get("role")
    text: Any = node.get("text")
    return Message(ROLE_OF.get(role, role) if isinstance(role, str) else role, text)


def _replies(node: Row) -> Sequence[Row]:
    replies = node.get("replies") or ()
    if not isinstance(replies, list | tuple) or not all(isinstance(reply, dict) for reply in replies):
        raise BadRow("a message's replies are not a list of messages")
    return replies


def _ranked(replies: Sequence[Row]) -> list[Row]:
    """The replies that people gave a place, 0 for the best."""
    ranked = [reply for reply in replies if reply.get("rank") is not None]
    for reply in ranked:
        if isinstance(reply["rank"], bool) or not isinstance(reply["rank"], int | float):
            raise BadRow("a reply's rank is not a number", f"got {type(reply['rank']).__name__}")
    return ranked
