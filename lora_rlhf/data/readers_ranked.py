"""Readers of ranked and scored responses, and of two responses with a choice between them.

Readers as of `readers`.
"""

import re
from collections.abc import Sequence
from typing import Any

from lora_rlhf.data.messages import (
    NOT_READ,
    Row,
    drop_answer,
    parse_list_in_text,
    split_answer,
    text_to_compare,
    to_answer,
    to_prompt_turns,
    to_response,
)
from lora_rlhf.data.readers import Draft, make_draft, required_number, to_conversation
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


def ranks_from_scores(scores: Sequence[float]) -> list[int]:
    """The rank of each score, 1 for the highest; equal scores have the same rank."""
    rank_by_score = {score: rank for rank, score in enumerate(sorted(set(scores), reverse=True), start=1)}
    return [rank_by_score[score] for score in scores]


def objects_in_column(row: Row, column: str) -> list[Row]:
    """The objects of a column that holds a list of them."""
    items = row[column]
    if not isinstance(items, list | tuple) or not all(isinstance(item, dict) for item in items):
        raise BadRow(f"{column} is not a list of objects")
    return list(items)


# ---------------------------------------------------------------------------------------------------------------------
# ranked or scored in one row


def read_ranking(row: Row, prompt_column: str, responses_column: str, ranks_column: str) -> list[Draft]:
    """Drafts: responses and a rank for each, 1 for the best."""
    responses = _read_responses(row, responses_column)
    ranks = parse_list_in_text(row[ranks_column], ranks_column)
    if isinstance(ranks, list | tuple):
        if any(isinstance(value, list | tuple) for value in ranks):
            raise BadRow("ranks is an order of lists: give each response its rank, 1 for the best", str(ranks)[:40])
        ranks = [_parse_rank(value) for value in ranks]
    ended = parse_list_in_text(row.get("ended"), "ended")
    return [
        Draft(to_prompt_turns(row[prompt_column], prompt_column), responses, ranks, row.get("labeler"), ended=ended)
    ]


def _parse_rank(value: Any) -> Any:
    """The whole number that a text holds; any other value unchanged."""
    return int(value) if isinstance(value, str) and value.strip().isdecimal() else value


def read_scored_responses(row: Row, prompt_column: str, responses_column: str, scores_column: str) -> list[Draft]:
    """Drafts: responses and a score for each, the highest for the best."""
    responses, scores = _read_responses(row, responses_column), parse_list_in_text(row[scores_column], scores_column)
    numbers = [to_number(value) for value in scores] if isinstance(scores, list | tuple) else [None]
    if len(numbers) != len(responses) or None in numbers:
        raise BadRow(f"{scores_column} is not a number for each response")
    ranks = ranks_from_scores([number for number in numbers if number is not None])
    return [Draft(to_prompt_turns(row[prompt_column], prompt_column), responses, ranks, row.get("labeler"))]


def _read_responses(row: Row, column: str) -> tuple[str, ...]:
    """The texts of a column that holds a list of responses."""
    responses = parse_list_in_text(row[column], column)
    if not isinstance(responses, list | tuple):
        raise BadRow(f"{column} is not a list", f"got {type(responses).__name__}")
    return tuple([to_response(response, "response") for response in responses])


def read_ultrafeedback(row: Row, instruction_column: str, completions_column: str) -> list[Draft]:
    """Drafts: UltraFeedback's completions, ranked by their mean rating, else by their overall score."""
    completions = objects_in_column(row, completions_column)
    scores = [_mean_rating(completion) for completion in completions]
    if sum(score is not None for score in scores) < 2:
        # another scale (1 to 10), so never mixed with the ratings; known to be wrong in places (10 where 1 was meant)
        scores = [to_number(completion.get("overall_score")) for completion in completions]
    scored = [
        (item.get("response"), score) for item, score in zip(completions, scores, strict=True) if score is not None
    ]
    if len(scored) < 2:
        raise BadRow("a ranking needs at least 2 scored completions", f"{len(scored)} of {len(completions)} have one")
    responses = tuple(to_response(response, "completion's response") for response, _ in scored)
    ranks = ranks_from_scores([score for _, score in scored])
    return [Draft(to_prompt_turns(row[instruction_column], instruction_column), responses, ranks)]


def _mean_rating(completion: Row) -> float | None:
    """The mean of the ratings (1 to 5) of a completion's aspects: the set's own, or computed from the ratings."""
    score = to_number(completion.get("fine-grained_score"))
    if score is not None:
        return round(score, 4)
    annotations = completion.get("annotations")
    aspects = annotations.values() if isinstance(annotations, dict) else ()
    ratings = [to_number(aspect.get("Rating")) for aspect in aspects if isinstance(aspect, dict)]
    numbers = [rating for rating in ratings if rating is not None]  # some are "N/A"
    return round(sum(numbers) / len(numbers), 4) if numbers else None


def read_nectar(row: Row, prompt_column: str, answers_column: str) -> list[Draft]:
    """Drafts: Nectar's answers with their ranks."""
    answers = objects_in_column(row, answers_column)
    responses = tuple(to_response(answer.get("answer"), "answer") for answer in answers)
    ranks: Any = [answer.get("rank") for answer in answers]  # numbers like 1.0, checked by Ranking
    return [Draft(to_prompt_turns(row[prompt_column], prompt_column), responses, ranks)]


def read_summaries(row: Row, info_column: str, summaries_column: str, choice_column: str) -> list[Draft]:
    """Drafts: the chosen summary has rank 1, all others rank 2."""
    candidates = objects_in_column(row, summaries_column)
    chosen_index = required_number(row, choice_column)
    if chosen_index not in range(len(candidates)):
        raise BadRow("choice is not the place of a summary", f"{chosen_index:g} of {len(candidates)}")
    texts = tuple(require_text(candidate.get("text"), "a summary").strip() for candidate in candidates)
    ranks = tuple(1 if index == chosen_index else 2 for index in range(len(candidates)))
    return [Draft(read_summaries_prompt(row, info_column)[0], texts, ranks, row.get("worker"))]


def read_summaries_prompt(row: Row, info_column: str, *others: str) -> list[Turns]:
    """Prompts of `read_summaries`: the paper's query (arXiv 2009.01325) for a post of a subreddit or a news article."""
    info = row[info_column]
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


def ranks_from_choice(value: Any, first_column: str, second_column: str) -> tuple[int, int]:
    """The ranks of two responses by a choice: the name, letter or number of one, "left", a tie, ...

    first_column, second_column: of the responses. A number is that in their names (`response_0`, `output_2`); a number
    between 1 and 2, as AlpacaEval writes it, prefers the nearer one. BadRow for a value that chooses neither.
    """
    word = "_".join(str(value).lower().split())
    endings = [re.split(r"[^a-z0-9]|(?<=[a-z])(?=\d)", name.lower())[-1] for name in (first_column, second_column)]
    number = to_number(value)
    if number is not None:
        if all(ending.isdecimal() for ending in endings) and number in map(float, endings):
            return (1, 2) if number == float(endings[0]) else (2, 1)
        if endings == ["1", "2"] and (1 < number < 2 or number == 0):
            return (1, 1) if number in (0, 1.5) else (1, 2) if number < 1.5 else (2, 1)
    elif word in TIES:
        return 1, 1
    elif word == first_column.lower() or word in FIRST or word.rpartition("_")[2] == endings[0]:
        return 1, 2
    elif word == second_column.lower() or word in SECOND or word.rpartition("_")[2] == endings[1]:
        return 2, 1
    raise BadRow("it is not clear which response was chosen", f"got {str(value)[:40]!r}")


def read_choice(
    row: Row, prompt_column: str, first_column: str, second_column: str, choice_column: str, *others: str
) -> list[Draft]:
    """Drafts: a prompt, two responses, and which of them was chosen."""
    ranks = ranks_from_choice(row[choice_column], first_column, second_column)
    return read_two_responses(row, prompt_column, first_column, second_column, ranks)


def read_two_responses(
    row: Row, prompt_column: str, first_column: str, second_column: str, ranks: tuple[int, int]
) -> list[Draft]:
    """The draft of two responses to one prompt; to a list of questions, each response is a list of answers."""
    prompt, answers = row[prompt_column], [row[first_column], row[second_column]]
    if isinstance(prompt, str) and prompt[:1] == "[":
        prompt, answers = _parse_list_or_keep_text(prompt), [_parse_list_or_keep_text(answer) for answer in answers]
    if isinstance(prompt, list) and prompt and all(isinstance(text, str) for text in prompt):
        return [Draft(*_split_answer_lists(prompt, answers), ranks, row.get("labeler"))]
    responses = tuple(
        to_response(answer, name) for name, answer in zip((first_column, second_column), answers, strict=True)
    )
    return [Draft(to_prompt_turns(prompt, prompt_column), responses, ranks, row.get("labeler"))]


def _parse_list_or_keep_text(value: Any) -> Any:
    """The list that a text holds; the value itself if it holds none."""
    try:
        return parse_list_in_text(value, "the prompt")
    except BadRow:
        return value


def _split_answer_lists(questions: list[str], answers: list[Any]) -> tuple[Turns, tuple[str, ...]]:
    """(the conversation before the last answers, the last answers) of two lists of answers to the same questions."""
    if not all(isinstance(texts, list | tuple) and len(texts) == len(questions) for texts in answers):
        raise BadRow("the prompt is a list of questions, and the responses are no lists of as many answers")
    if len({tuple(texts[:-1]) for texts in answers}) > 1:
        raise BadRow("the two conversations differ before their last message")
    turns = [Message("user", questions[0])]
    for answer, question in zip(answers[0][:-1], questions[1:], strict=True):
        turns += [Message("assistant", answer), Message("user", question)]
    return tuple(turns), tuple(require_text(texts[-1], "a response") for texts in answers)


def read_choice_prompt(row: Row, prompt_column: str, *others: str) -> list[Turns]:
    """Prompts of `read_choice`."""
    prompt = row[prompt_column]
    if isinstance(prompt, str) and prompt[:1] == "[":
        prompt = _parse_list_or_keep_text(prompt)
    if isinstance(prompt, list) and prompt and all(isinstance(text, str) for text in prompt):
        if len(prompt) > 1:
            raise BadRow("the prompt is a list of questions, whose answers differ", f"{len(prompt)} questions")
        prompt = prompt[0]
    return [to_prompt_turns(prompt, prompt_column)]


def read_arena_kaggle(
    row: Row, prompt_column: str, first_column: str, second_column: str, *win_columns: str
) -> list[Draft]:
    """Drafts: the winner is in three columns of 0 and 1: the first, the second, a tie."""
    flags = [to_number(row[name]) for name in win_columns]
    if sorted(flag is not None and flag == 1 for flag in flags) != [False, False, True]:
        raise BadRow(
            "it is not clear which response was chosen", f"{' '.join(str(row[name])[:8] for name in win_columns)}"
        )
    return read_two_responses(row, prompt_column, first_column, second_column, ((1, 2), (2, 1), (1, 1))[flags.index(1)])


def read_two_conversations(row: Row, first_column: str, second_column: str, winner_column: str) -> list[Draft]:
    """Drafts: two whole conversations that differ in their last answer, and which of them won."""
    ranks = ranks_from_choice(row[winner_column], first_column, second_column)
    (turns, answer), (other_turns, other_answer) = (
        split_answer(to_conversation(row[name], name), name) for name in (first_column, second_column)
    )
    if turns != other_turns:
        raise BadRow("the two conversations differ before their last message")
    return [Draft(turns, (text_to_compare(answer), text_to_compare(other_answer)), ranks, row.get("judge"))]


def read_first_conversation(row: Row, first_column: str, *others: str) -> list[Turns]:
    """Prompts: the conversation of the first column, without its answer."""
    turns = drop_answer(to_conversation(row[first_column], first_column))
    if len([message for message in turns if message.role == "user"]) > 1:
        return [split_answer(to_conversation(row[first_column], first_column), first_column)[0]]
    return [turns]


def read_shp(row: Row, history_column: str, first_column: str, second_column: str, label_column: str) -> list[Draft]:
    """Drafts of SHP: label 1 prefers the first response, 0 the second."""
    prefers_first = required_number(row, label_column)
    if prefers_first not in (0, 1):
        raise BadRow("labels is neither 1 (A is preferred) nor 0", f"got {prefers_first:g}")
    responses = to_response(row[first_column], first_column), to_response(row[second_column], second_column)
    return [Draft(read_shp_prompt(row, history_column)[0], responses, (1, 2) if prefers_first else (2, 1))]


def read_shp_prompt(row: Row, history_column: str, *others: str) -> list[Turns]:
    """Prompts of SHP: the post as one user's message."""
    return [(Message("user", row[history_column]),)]


def read_preference_strength(
    row: Row, prompt_column: str, first_column: str, second_column: str, strength_column: str
) -> list[Draft]:
    """Drafts of HelpSteer's preferences: below 0 for the first response, above 0 for the second, 0 for a tie."""
    strength = required_number(row, strength_column)
    if abs(strength) > 3:
        raise BadRow(f"{strength_column} is not between -3 and 3", f"got {strength:g}")
    responses = to_response(row[first_column], first_column), to_response(row[second_column], second_column)
    return [Draft(read_helpsteer_prompt(row, prompt_column)[0], responses, ranks_from_scores((-strength, strength)))]


def read_better_first(row: Row, prompt_column: str, better_column: str, worse_column: str) -> list[Draft]:
    """Drafts: two responses, the better one first."""
    return read_two_responses(row, prompt_column, better_column, worse_column, (1, 2))


def read_webgpt(
    row: Row, question_column: str, first_column: str, second_column: str, *score_columns: str
) -> list[Draft]:
    """Drafts of WebGPT's comparisons: the answer with the higher score is better, equal scores are a tie."""
    ranks = ranks_from_scores([required_number(row, name) for name in score_columns])
    responses = to_response(row[first_column], first_column), to_response(row[second_column], second_column)
    return [Draft(read_webgpt_prompt(row, question_column)[0], responses, ranks)]


def read_webgpt_prompt(row: Row, question_column: str, *others: str) -> list[Turns]:
    """Prompts of WebGPT: the full text of the question."""
    question = row[question_column]
    return [to_prompt_turns(question.get("full_text") if isinstance(question, dict) else question, question_column)]


def read_openai_preference(row: Row, input_column: str, preferred_column: str, other_column: str) -> list[Draft]:
    """Drafts of OpenAI's preferences: the conversation in `input`, each answer as a list with one message."""
    answers = [to_response(row[name], name) for name in (preferred_column, other_column)]
    return [Draft(read_openai_prompt(row, input_column)[0], tuple(answers), (1, 2))]


def read_openai_prompt(row: Row, input_column: str, *others: str) -> list[Turns]:
    """Prompts of OpenAI's preferences."""
    if not isinstance(row[input_column], dict):
        raise BadRow(f"{input_column} is not an object with messages", f"got {type(row[input_column]).__name__}")
    if not is_blank(row[input_column].get("tools")):
        raise BadRow(NOT_READ["tools"], f"tools in {input_column}; a column tools is read")
    return [to_conversation(row[input_column].get("messages"), input_column)]


# ---------------------------------------------------------------------------------------------------------------------
# one response a row


def read_helpsteer(
    row: Row, prompt_column: str, response_column: str, helpfulness_column: str, *others: str
) -> list[Draft]:
    """Drafts: a response with its helpfulness as grade; other rows hold the prompt's other responses."""
    grade = required_number(row, helpfulness_column)
    turns = read_helpsteer_prompt(row, prompt_column)[0]
    return [make_draft(turns, to_answer(row[response_column], response_column), grade)]


def read_helpsteer_prompt(row: Row, prompt_column: str, *others: str) -> list[Turns]:
    """Prompts: a user's text; later turns are marked "<extra_id_1>Assistant" and "<extra_id_1>User"."""
    if not isinstance(row[prompt_column], str) or "<extra_id_1>" not in row[prompt_column]:
        return [to_prompt_turns(row[prompt_column], prompt_column)]
    first, *parts = HELPSTEER_TURN.split(row[prompt_column])
    roles = {"User": "user", "Assistant": "assistant"}
    turns = [("User", first), *zip(parts[::2], parts[1::2], strict=True)]
    # a text that begins with a mark has nothing before it
    return [
        tuple(Message(roles[speaker], text.strip()) for speaker, text in turns if text.strip() or speaker != "User")
    ]
