"""The readers of ranked and scored responses, and of two responses with a choice between them.

Readers as of `readers`.
"""

import re
from collections.abc import Sequence
from typing import Any

from lora_rlhf.data.messages import (
    Row,
    list_in_text,
    split_answer,
    to_answer,
    to_prompt_turns,
    to_response,
    without_answer,
)
from lora_rlhf.data.readers import Draft, conversation_turns, learned, required_number
from lora_rlhf.data.refusals import BadRow
from lora_rlhf.data.schema import Message, Turns, require_text
from lora_rlhf.data.verdicts import is_blank, to_number

HELPSTEER_TURN = re.compile(r"\n*<extra_id_1>(User|Assistant)\n")
TIES = frozenset(
    "tie ties tied draw equal same both neither none_better bothbad both_bad bothgood both_good tie_(bothbad) "
    "tie_(both_bad) 1.5".split()
)
FIRST = frozenset("a left first model_a response_a assistant_a option_a answer_a".split())
SECOND = frozenset("b right second model_b response_b assistant_b option_b answer_b".split())


# ---------------------------------------------------------------------------------------------------------------------
# scores to ranks


def ranks_of(scores: Sequence[float]) -> list[int]:
    """The rank of each score, 1 for the highest; equal scores share a rank."""
    rank_by_score = {score: rank for rank, score in enumerate(sorted(set(scores), reverse=True), start=1)}
    return [rank_by_score[score] for score in scores]


def _items(row: Row, column: str) -> list[Row]:
    """The objects of a column that holds a list of them."""
    items = row[column]
    if not isinstance(items, list | tuple) or not all(isinstance(item, dict) for item in items):
        raise BadRow(f"{column} is not a list of objects")
    return list(items)


# ---------------------------------------------------------------------------------------------------------------------
# ranked or scored in one row


def ranking(row: Row, prompt: str, responses: str, ranks: str) -> list[Draft]:
    answers = _responses(row, responses)
    values = list_in_text(row[ranks], ranks)
    if isinstance(values, list | tuple):
        if any(isinstance(value, list | tuple) for value in values):
            raise BadRow("ranks is an order of lists: give each response its rank, 1 for the best", str(values)[:40])
        values = [_rank_in_text(value) for value in values]
    return [Draft(to_prompt_turns(row[prompt], prompt), answers, values, row.get("labeler"))]


def _rank_in_text(value: Any) -> Any:
    return int(value) if isinstance(value, str) and value.strip().isdecimal() else value


def scored_responses(row: Row, prompt: str, responses: str, scores: str) -> list[Draft]:
    """Responses and a score for each, the highest for the best."""
    answers, values = _responses(row, responses), list_in_text(row[scores], scores)
    numbers = [to_number(value) for value in values] if isinstance(values, list | tuple) else [None]
    if len(numbers) != len(answers) or None in numbers:
        raise BadRow(f"{scores} is not a number for each response")
    ranks = ranks_of([number for number in numbers if number is not None])
    return [Draft(to_prompt_turns(row[prompt], prompt), answers, ranks, row.get("labeler"))]


def _responses(row: Row, column: str) -> tuple[str, ...]:
    responses = list_in_text(row[column], column)
    if not isinstance(responses, list | tuple):
        raise BadRow(f"{column} is not a list", f"got {type(responses).__name__}")
    return tuple([to_response(response, "response") for response in responses])


def ultrafeedback(row: Row, instruction: str, column: str) -> list[Draft]:
    completions = _items(row, column)
    scores = [_fine_score(completion) for completion in completions]
    if sum(score is not None for score in scores) < 2:
        # another scale (1 to 10), so never mixed with the ratings; known to be wrong in places (10 where 1 was meant)
        scores = [to_number(completion.get("overall_score")) for completion in completions]
    scored = [
        (item.get("response"), score) for item, score in zip(completions, scores, strict=True) if score is not None
    ]
    if len(scored) < 2:
        raise BadRow("a ranking needs at least 2 scored completions", f"{len(scored)} of {len(completions)} have one")
    responses = tuple(to_response(response, "completion's response") for response, _ in scored)
    ranks = ranks_of([score for _, score in scored])
    return [Draft(to_prompt_turns(row[instruction], instruction), responses, ranks)]


def _fine_score(completion: Row) -> float | None:
    """The mean of the ratings (1 to 5) of a completion's aspects, as the set gives it or from the ratings."""
    score = to_number(completion.get("fine-grained_score"))
    if score is not None:
        return round(score, 4)
    annotations = completion.get("annotations")
    aspects = annotations.values() if isinstance(annotations, dict) else ()
    ratings = [to_number(aspect.get("Rating")) for aspect in aspects if isinstance(aspect, dict)]
    numbers = [rating for rating in ratings if rating is not None]  # some are "N/A"
    return round(sum(numbers) / len(numbers), 4) if numbers else None


def nectar(row: Row, prompt: str, column: str) -> list[Draft]:
    answers = _items(row, column)
    responses = tuple(to_response(answer.get("answer"), "answer") for answer in answers)
    ranks: Any = [answer.get("rank") for answer in answers]  # numbers like 1.0, checked by Ranking
    return [Draft(to_prompt_turns(row[prompt], prompt), responses, ranks)]


def summaries(row: Row, info: str, column: str, choice: str) -> list[Draft]:
    candidates = _items(row, column)
    chosen = required_number(row, choice)
    if chosen not in range(len(candidates)):
        raise BadRow("choice is not the place of a summary", f"{chosen:g} of {len(candidates)}")
    texts = tuple(require_text(candidate.get("text"), "a summary").strip() for candidate in candidates)
    ranks = tuple(1 if index == chosen else 2 for index in range(len(candidates)))
    return [Draft(summaries_prompt(row, info)[0], texts, ranks, row.get("worker"))]


def summaries_prompt(row: Row, column: str, *others: str) -> list[Turns]:
    """The query of the paper (arXiv 2009.01325): a post of a subreddit, or a news article."""
    info = row[column]
    if not isinstance(info, dict):
        raise BadRow("info is not an object", f"got {type(info).__name__}")
    if info.get("post") is None and info.get("article") is None:
        raise BadRow("info holds neither a post nor an article")
    if info.get("post") is None:
        parts = [("Article: ", info["article"])]
    else:
        parts = [("SUBREDDIT: r/", info.get("subreddit")), ("TITLE: ", info.get("title")), ("POST: ", info["post"])]
    sections = [title + require_text(value, "what is to be summarized") for title, value in parts if value is not None]
    return [(Message("user", "\n\n".join([*sections, "TL;DR:"])),)]


# ---------------------------------------------------------------------------------------------------------------------
# two responses and a choice


def choice_ranks(value: Any, first: str, second: str) -> tuple[int, int]:
    """The ranks of two responses by a choice: the name, letter or number of one, "left", a tie, ...

    first, second: the responses' columns. A number is that in their names (`response_0`, `output_2`); between 1 and 2,
    as AlpacaEval writes it, it leans to one. BadRow for what chooses neither.
    """
    word = "_".join(str(value).lower().split())
    endings = [re.split(r"[^a-z0-9]|(?<=[a-z])(?=\d)", name.lower())[-1] for name in (first, second)]
    number = to_number(value)
    if number is not None:
        if all(ending.isdecimal() for ending in endings) and number in map(float, endings):
            return (1, 2) if number == float(endings[0]) else (2, 1)
        if endings == ["1", "2"] and (1 < number < 2 or number == 0):
            return (1, 1) if number in (0, 1.5) else (1, 2) if number < 1.5 else (2, 1)
    elif word in TIES:
        return 1, 1
    elif word == first.lower() or word in FIRST or word.rpartition("_")[2] == endings[0]:
        return 1, 2
    elif word == second.lower() or word in SECOND or word.rpartition("_")[2] == endings[1]:
        return 2, 1
    raise BadRow("it is not clear which response was chosen", f"got {str(value)[:40]!r}")


def compared(row: Row, prompt: str, first: str, second: str, choice: str, *others: str) -> list[Draft]:
    """A prompt, two responses, and which of them was chosen."""
    ranks = choice_ranks(row[choice], first, second)
    return _two(row, prompt, first, second, ranks)


def _two(row: Row, prompt: str, first: str, second: str, ranks: tuple[int, int]) -> list[Draft]:
    """Two responses to one prompt. Where the prompt is a list of questions, the responses are lists of answers."""
    asked, answers = row[prompt], [row[first], row[second]]
    if isinstance(asked, str) and asked[:1] == "[":
        asked, answers = _list_or_text(asked), [_list_or_text(answer) for answer in answers]
    if isinstance(asked, list) and asked and all(isinstance(text, str) for text in asked):
        return [Draft(*_last_of_lists(asked, answers), ranks, row.get("labeler"))]
    responses = tuple(to_response(answer, name) for name, answer in zip((first, second), answers, strict=True))
    return [Draft(to_prompt_turns(asked, prompt), responses, ranks, row.get("labeler"))]


def _list_or_text(value: Any) -> Any:
    try:
        return list_in_text(value, "the prompt")
    except BadRow:
        return value


def _last_of_lists(questions: list[str], answers: list[Any]) -> tuple[Turns, tuple[str, ...]]:
    """The conversation before the last answers of two lists of answers, and these."""
    if not all(isinstance(texts, list | tuple) and len(texts) == len(questions) for texts in answers):
        raise BadRow("the prompt is a list of questions, and the responses are no lists of as many answers")
    if len({tuple(texts[:-1]) for texts in answers}) > 1:
        raise BadRow("the two conversations differ before their last message")
    turns = [Message("user", questions[0])]
    for answer, question in zip(answers[0][:-1], questions[1:], strict=True):
        turns += [Message("assistant", answer), Message("user", question)]
    return tuple(turns), tuple(require_text(texts[-1], "a response") for texts in answers)


def first_questions(row: Row, prompt: str, *others: str) -> list[Turns]:
    """The prompt of `compared`."""
    asked = _list_or_text(row[prompt]) if isinstance(row[prompt], str) and row[prompt][:1] == "[" else row[prompt]
    if isinstance(asked, list) and asked and all(isinstance(text, str) for text in asked):
        if len(asked) > 1:
            raise BadRow("the prompt is a list of questions, whose answers differ", f"{len(asked)} questions")
        asked = asked[0]
    return [to_prompt_turns(asked, prompt)]


def arena_kaggle(row: Row, prompt: str, first: str, second: str, *wins: str) -> list[Draft]:
    """The winner as three columns of 0 and 1: of the first, of the second, a tie."""
    flags = [to_number(row[name]) for name in wins]
    if sorted(flag is not None and flag == 1 for flag in flags) != [False, False, True]:
        raise BadRow("it is not clear which response was chosen", f"{' '.join(str(row[name])[:8] for name in wins)}")
    return _two(row, prompt, first, second, ((1, 2), (2, 1), (1, 1))[flags.index(1)])


def conversations_compared(row: Row, first: str, second: str, winner: str) -> list[Draft]:
    """Two whole conversations that differ in their last answer, and which of them won."""
    ranks = choice_ranks(row[winner], first, second)
    (before, answer), (other_before, other) = (
        split_answer(conversation_turns(row[name], name), name) for name in (first, second)
    )
    if before != other_before:
        raise BadRow("the two conversations differ before their last message")
    return [Draft(before, (answer.content, other.content), ranks, row.get("judge"))]


def open_first(row: Row, first: str, *others: str) -> list[Turns]:
    """The conversation of the first column, without its answer."""
    turns = without_answer(conversation_turns(row[first], first))
    if len([message for message in turns if message.role == "user"]) > 1:
        return [split_answer(conversation_turns(row[first], first), first)[0]]
    return [turns]


def shp(row: Row, history: str, first: str, second: str, labels: str) -> list[Draft]:
    prefers_first = required_number(row, labels)
    if prefers_first not in (0, 1):
        raise BadRow("labels is neither 1 (A is preferred) nor 0", f"got {prefers_first:g}")
    responses = to_response(row[first], first), to_response(row[second], second)
    return [Draft(shp_prompt(row, history)[0], responses, (1, 2) if prefers_first else (2, 1))]


def shp_prompt(row: Row, history: str, *others: str) -> list[Turns]:
    return [(Message("user", row[history]),)]


def preference_strength(row: Row, prompt: str, first: str, second: str, strength: str) -> list[Draft]:
    """HelpSteer's preferences: below 0 for the first response, above 0 for the second, 0 for a tie."""
    preferred = required_number(row, strength)
    if abs(preferred) > 3:
        raise BadRow(f"{strength} is not between -3 and 3", f"got {preferred:g}")
    responses = to_response(row[first], first), to_response(row[second], second)
    return [Draft(helpsteer_prompt(row, prompt)[0], responses, ranks_of((-preferred, preferred)))]


def better_first(row: Row, prompt: str, better: str, worse: str) -> list[Draft]:
    """Two responses of which the first is the better one."""
    return _two(row, prompt, better, worse, (1, 2))


def webgpt(row: Row, question: str, first: str, second: str, *scores: str) -> list[Draft]:
    """WebGPT's comparisons: the higher score is the better one, equal scores are a tie."""
    ranks = ranks_of([required_number(row, name) for name in scores])
    responses = to_response(row[first], first), to_response(row[second], second)
    return [Draft(webgpt_prompt(row, question)[0], responses, ranks)]


def webgpt_prompt(row: Row, question: str, *others: str) -> list[Turns]:
    asked = row[question]
    return [to_prompt_turns(asked.get("full_text") if isinstance(asked, dict) else asked, question)]


def openai_preference(row: Row, asked: str, preferred: str, other: str) -> list[Draft]:
    """OpenAI's form for preferences: the conversation in `input`, the answers as lists with one message."""
    sides = [to_answer(row[name], name).content for name in (preferred, other)]
    return [Draft(openai_prompt(row, asked)[0], tuple(sides), (1, 2))]


def openai_prompt(row: Row, asked: str, *others: str) -> list[Turns]:
    if not isinstance(row[asked], dict):
        raise BadRow(f"{asked} is not an object with messages", f"got {type(row[asked]).__name__}")
    if not is_blank(row[asked].get("tools")):
        raise BadRow("the row holds a tool call, and no stage here learns tool calls yet", f"tools in {asked}")
    return [conversation_turns(row[asked].get("messages"), asked)]


# ---------------------------------------------------------------------------------------------------------------------
# exports of labelling tools


def argilla(row: Row, prompt: str, first: str, second: str, column: str) -> list[Draft]:
    """Argilla's export of a ranking question: for each person, the names of the responses, the best first."""
    names = [name for name in row if re.fullmatch(r"response-\d+", name) and row[name] is not None]
    responses = tuple(to_response(row[name], name) for name in names)
    orders = list_in_text(row[column], column)
    if not isinstance(orders, list | tuple) or not orders:
        raise BadRow(f"{column} is not a list")
    orders = [orders] if isinstance(orders[0], str) or _is_ranked(orders[0]) else orders
    statuses, users = (list_in_text(row.get(f"{column}.{name}"), column) for name in ("status", "users"))
    drafts = []
    for index, order in enumerate(orders):
        if isinstance(statuses, list) and len(statuses) == len(orders) and statuses[index] != "submitted":
            continue
        user = users[index] if isinstance(users, list) and len(users) == len(orders) else None
        ranks = _ranks_of_order(order, names, column)
        drafts.append(Draft(to_prompt_turns(row[prompt], prompt), responses, ranks, user))
    if not drafts:
        raise BadRow("nobody has submitted a ranking of these responses")
    return drafts


def _is_ranked(item: Any) -> bool:
    return isinstance(item, dict) and "value" in item and "rank" in item


def _ranks_of_order(order: Any, names: list[str], column: str) -> list[Any]:
    """The rank of each name in a list of names, of lists of equals, or of {value, rank}."""
    ranks: dict[Any, Any] = {}
    if isinstance(order, list | tuple):
        for rank, item in enumerate(order, start=1):
            if _is_ranked(item):
                ranks[str(item["value"])] = item["rank"]
            else:
                ranks.update(dict.fromkeys(map(str, item if isinstance(item, list | tuple) else [item]), rank))
    if set(ranks) != set(names):
        raise BadRow(f"{column} does not rank each response", str(order)[:40])
    return [ranks[name] for name in names]


def is_label_studio(row: Row) -> bool:
    return isinstance(row["data"], dict) and isinstance(row["annotations"], list | tuple)


def label_studio(row: Row, data: str, annotations: str) -> list[Draft]:
    """Label Studio's JSON export: a pairwise choice, left or right, of each person."""
    prompt, first, second = _label_studio_columns(row[data])
    turns = to_prompt_turns(row[data][prompt], prompt)
    responses = tuple(to_response(row[data][name], name) for name in (first, second))
    drafts = []
    for annotation in _items(row, annotations):
        results = annotation.get("result")
        for result in results if isinstance(results, list | tuple) else ():
            value = result.get("value") if isinstance(result, dict) else None
            if isinstance(value, dict) and value.get("selected") is not None:
                person = annotation.get("completed_by")
                labeler = person if person is None or isinstance(person, str) else str(person)
                drafts.append(Draft(turns, responses, choice_ranks(value["selected"], first, second), labeler))
    if not drafts:
        raise BadRow("the task has no pairwise annotation")
    return drafts


def label_studio_prompt(row: Row, data: str, *others: str) -> list[Turns]:
    prompt = _label_studio_columns(row[data])[0]
    return [to_prompt_turns(row[data][prompt], prompt)]


def _label_studio_columns(data: Row) -> tuple[str, str, str]:
    """The names of the prompt and of the two answers in a task's data."""
    pair = next(
        ((name, other) for name in data for other in data if (name[:-1], name[-1:], other[-1:]) in _pairs_of(other)),
        None,
    )
    texts = [name for name, value in data.items() if pair is not None and name not in pair and not is_blank(value)]
    prompt = next((name for name in ("prompt", "question", "instruction", "text", "input") if name in texts), None)
    if pair is None or prompt is None:
        raise BadRow("the task holds no prompt with two answers", f"found {', '.join(map(str, data))}"[:60])
    return prompt, *pair


def _pairs_of(name: str) -> set[tuple[str, str, str]]:
    return {(name[:-1], first, second) for first, second in (("1", "2"), ("a", "b"), ("A", "B"))}


def label_studio_min(row: Row, prompt: str, first: str, second: str) -> list[Draft]:
    """Label Studio's JSON_MIN export: the choice stands in a column that the labelling page names."""
    choices = [value for value in row.values() if isinstance(value, str) and value in ("left", "right")]
    person = row.get("annotator")
    labeler = person if person is None or isinstance(person, str) else str(person)
    return [
        draft._replace(labeler=labeler)
        for draft in _two(row, prompt, first, second, choice_ranks(choices[0], first, second))
    ]


def is_label_studio_min(row: Row) -> bool:
    return sum(isinstance(value, str) and value in ("left", "right") for value in row.values()) == 1


# ---------------------------------------------------------------------------------------------------------------------
# one response a row


def helpsteer(row: Row, prompt: str, response: str, helpfulness: str, *others: str) -> list[Draft]:
    """A response with its helpfulness; the other rows of the prompt hold the other responses."""
    grade = required_number(row, helpfulness)
    return [Draft(helpsteer_prompt(row, prompt)[0], (learned(to_answer(row[response], response)),), grade=grade)]


def helpsteer_prompt(row: Row, prompt: str, *others: str) -> list[Turns]:
    """A user's text; later turns of a conversation are marked "<extra_id_1>Assistant" and "<extra_id_1>User"."""
    if not isinstance(row[prompt], str) or "<extra_id_1>" not in row[prompt]:
        return [to_prompt_turns(row[prompt], prompt)]
    first, *parts = HELPSTEER_TURN.split(row[prompt])
    roles = {"User": "user", "Assistant": "assistant"}
    turns = [("User", first), *zip(parts[::2], parts[1::2], strict=True)]
    # a text that begins with a mark has nothing before it
    return [tuple(Message(roles[who], said.strip()) for who, said in turns if said.strip() or who != "User")]
