"""What the name of a column, or of a message's key, tells about its values: a part of the conversation, a verdict, ...

Data sets name one thing in many ways (`is_safe`, `response_is_safe`, `safetyLabel`), so a name is read by its words. A
name with a word that is not known here says nothing, except for images, sounds and metadata.
"""

import re
from functools import lru_cache
from typing import Literal

Meaning = Literal[
    "system",  # parts of the conversation
    "history",
    "context",
    "label",  # a verdict on the answer, and nothing else
    "rating",  # a verdict in words, or a score
    "good",  # whether the answer is good
    "bad",  # whether it is bad
    "score",  # how good it is, as a number
    "weight",  # whether, or how much, it is to be learned
    "thought",  # what a model thought before its answer
    "tools",
    "media",  # an image or a sound
    "choices",  # what a question lets choose from
    "speaker",  # the name of a message's author
    "metadata",  # where the row is from and what it is about
]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_ANSWER = _words("answer response completion output assistant model generated generation reply")
_COPULA = _words("is was has")
_ANY = _words("the of a final overall human binary gold") | _ANSWER | _COPULA  # words that may stand beside all others
_METADATA = _words(
    "id ids uid uuid idx index hash sha md5 source src origin dataset datasets subset split lang language languages "
    "model models url urls link uri date time timestamp created updated category categories topic topics domain "
    "domains subject task tasks type types kind tag tags license version annotator annotators labeler labelers author "
    "worker rater raters margin status state meta metadata info tokens token length len count num number rationale "
    "rationales reason explanation critique critiques comment comments note notes generator generators generations "
    "difficulty level score scores rating ratings reward rewards rank label labels quality name file filename path "
    "title headline heading section chapter author authors book publisher journal subreddit site perplexity "
    "row key dump digest country turn turns round order batch session config seed temperature principle"
)
_MEDIA = _words("image images img imgs audio audios video videos picture pictures photo photos speech")
_MEDIA_TEXT = _words("caption captions description descriptions prompt count num has alt")
_EARLIER = _words("history previous prior past earlier preceding")
_TURNS = _words("chat conversation dialog dialogue message messages turns turn")
_GOOD = _words(
    "safe good correct accepted acceptable approved preferred desirable desired helpful harmless valid liked upvoted "
    "passed success successful chosen"
)
_BAD = _words(
    "toxic harmful unsafe bad wrong incorrect rejected undesirable undesired invalid hateful offensive flagged failed "
    "disliked downvoted unhelpful nsfw spam"
)
# A name has a meaning if it holds a word of the first set, and all other words are in the second or in _ANY.
_KINDS: tuple[tuple[Meaning, frozenset[str], frozenset[str]], ...] = (
    ("score", _words("score scores reward rewards"), _words("mean avg average rm total instruct quality preference")),
    (
        "label",
        _words("label labels verdict kto"),
        _words("tag safety preference quality user annotator") | _GOOD | _BAD,
    ),
    ("rating", _words("rating ratings quality grade vote thumbs thumb feedback judgement judgment"), _words("up user")),
    ("good", _GOOD, frozenset()),
    ("bad", _BAD, frozenset()),
    ("weight", _words("weight trainable trained train training learn learned loss masked"), _words("sample mask")),
    (
        "thought",
        _words("reasoning thinking thought thoughts think cot"),
        _words("content text trace traces trajectory trajectories chain process steps deepseek gemini qwen r 1"),
    ),
    ("tools", _words("tool tools"), _words("available use used list definitions schema schemas api apis call calls")),
    ("history", _EARLIER, _TURNS),
)
_EXACT: dict[str, Meaning] = {
    **dict.fromkeys(("system", "system_prompt", "system_message", "system_instruction", "system_text"), "system"),
    **dict.fromkeys(("system_instructions", "system_content", "sys_prompt", "sysprompt", "sys"), "system"),
    **dict.fromkeys(("input", "context", "contexts", "passage", "passages", "background"), "context"),
    **dict.fromkeys(("document", "documents", "article", "paragraph", "excerpt"), "context"),
    **dict.fromkeys(("input_text", "context_text", "input_context", "additional_context", "extra_context"), "context"),
    **dict.fromkeys(("choices", "options", "answer_choices", "answer_options"), "choices"),
    **dict.fromkeys(("functions", "function_call", "function_calls"), "tools"),
    **dict.fromkeys(("tool_call_id", "tool_choice", "parallel_tool_calls"), "metadata"),
    **dict.fromkeys(("name", "speaker", "speaker_name", "user_name"), "speaker"),
}


IGNORED_PREFIX = "ignored column "  # put before the name of a column that --columns ignores


@lru_cache(maxsize=4096)
def name_words(name: str) -> tuple[str, ...]:
    """The words of a name in lower case: ("is", "safe") for "isSafe", "is-safe", "is_safe" and "ISSAFE"."""
    words = tuple(word.lower() for word in _WORD.findall(name))
    if len(words) == 1 and words[0].startswith("is") and words[0][2:] in _GOOD | _BAD:
        return "is", words[0][2:]
    return words


@lru_cache(maxsize=4096)
def fold_name(name: str) -> str:
    """The name as names are compared: lower case, with _ for blanks and hyphens."""
    return re.sub(r"[\s\-]+", "_", name.strip().casefold())


@lru_cache(maxsize=4096)
def column_meaning(name: str) -> Meaning | None:
    """What a name tells about its values; None if it tells nothing that is known here."""
    if name.startswith(IGNORED_PREFIX):
        return "metadata"
    words = name_words(name)
    if meaning := _EXACT.get("_".join(words)):
        return meaning
    for meaning, main, others in _KINDS:
        if main.intersection(words) and _ANY.union(main, others).issuperset(words):
            return None if meaning in ("good", "bad") and _is_answer_name(words) else meaning
    if _MEDIA.intersection(words) and not _MEDIA_TEXT.intersection(words):
        return "media"
    return "metadata" if _METADATA.intersection(words) else None


def _is_answer_name(words: tuple[str, ...]) -> bool:
    """Whether a name stands for an answer: `correct_answer` does, `is_correct_answer` and `answer_correct` do not."""
    return words[-1] in _ANSWER and words[0] not in _COPULA
