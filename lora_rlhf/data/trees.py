"""OpenAssistant's trees of messages, one tree or one message a row: every prompter's turn with its ranked replies."""

from collections.abc import Hashable, Sequence
from typing import Any

from lora_rlhf.data.messages import Row
from lora_rlhf.data.readers import Draft
from lora_rlhf.data.refusals import BadRow
from lora_rlhf.data.schema import Message, Turns

ROLE_OF = {"prompter": "user", "assistant": "assistant"}
# of a message's row, beside its id, tree, text and role
MESSAGE_COLUMNS = (
    *("parent_id", "rank", "deleted", "user_id", "created_date", "review_count", "review_result", "synthetic"),
    *("model_name", "detoxify", "tree_state", "emojis", "labels"),
)
DEEPEST = 200  # turns of a conversation that are followed; the set's longest has about ten

PrompterTurn = tuple[Turns, list[Row]]  # the conversation up to it, and the replies to it


def rankings(row: Row, *names: str) -> list[Draft]:
    """One ranking for every prompter's turn with at least two ranked replies."""
    drafts = []
    for turns, replies in _prompter_turns(row):
        ranked = _ranked(replies)
        if len(ranked) >= 2:
            texts = tuple(_message(reply).content for reply in ranked)
            drafts.append(Draft(turns, texts, tuple(reply["rank"] + 1 for reply in ranked)))
    if not drafts:
        raise BadRow("the tree has no prompt with two ranked replies")
    return drafts


def demonstrations(row: Row, *names: str) -> list[Draft]:
    """The best-ranked reply to every prompter's turn; where none is ranked, its only one."""
    drafts = []
    for turns, replies in _prompter_turns(row):
        candidates = _ranked(replies) or (replies if len(replies) == 1 else [])
        if candidates:
            best = min(candidates, key=lambda reply: reply.get("rank") or 0)
            drafts.append(Draft(turns, (_message(best).content,)))
    if not drafts:
        raise BadRow("the tree has no prompt with a reply")
    return drafts


def prompts(row: Row, *names: str) -> list[Turns]:
    """Every prompter's turn, each with the conversation before it."""
    return [turns for turns, _ in _prompter_turns(row)]


def is_tree(row: Row) -> bool:
    return isinstance(row["prompt"], dict)


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
        raise BadRow("the tree's first message is not among the rows", f"found {len(roots)}")
    return {"message_tree_id": rows[0]["message_tree_id"], "prompt": roots[0]}


def _prompter_turns(row: Row) -> list[PrompterTurn]:
    """Every prompter's turn, in the order of the tree. Deleted messages end a branch."""
    prompter_turns: list[PrompterTurn] = []
    stack: list[tuple[Turns, Row]] = [((), row["prompt"])]
    while stack:
        before, node = stack.pop()
        if node.get("deleted"):
            continue
        turns = (*before, _message(node))
        if len(turns) > DEEPEST:
            raise BadRow("the tree is too deep", f"more than {DEEPEST} turns")
        replies = [reply for reply in _replies(node) if not reply.get("deleted")]
        if turns[-1].role == "user":
            prompter_turns.append((turns, replies))
        stack.extend((turns, reply) for reply in reversed(replies))
    if not prompter_turns:
        raise BadRow("the tree holds no prompt")
    return prompter_turns


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
