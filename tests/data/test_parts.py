"""Parts of the conversation in other columns, columns by other names, and rows that hold rows or lists as text."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from lora_rlhf.data.cells import parse_list
from lora_rlhf.data.columns import Columns
from lora_rlhf.data.recognise import UNKNOWN
from lora_rlhf.data.refusals import BadRow
from lora_rlhf.data.schema import Demonstration, Message, Prompt, Ranking
from lora_rlhf.data.sources import Source
from lora_rlhf.system.errors import UserError
from tests.data.test_formats import EXAMPLES
from tests.support.rows import RowSource, read

TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
PAIR = {"prompt": "Hi", "completion": "Hello"}
HISTORY = (Message("user", "Cow?"), Message("assistant", "Vache"))
# of one question, without parts of their own
PLAIN = (
    "prompt-completion question-answer problem-solution openmath inputs-targets sharegpt conversation preference "
    "conversations-pair chosen-response rejected-response stack-exchange ranking nectar pku-saferlhf arena argilla "
    "ultrafeedback webgpt alpaca-farm"
).split()


def prompt_of(record: Any) -> Prompt:
    return record if isinstance(record, Prompt) else record.prompt


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize(
    ("columns", "before", "after"),
    [
        ({"system": "Be kind."}, (Message("system", "Be kind."),), ""),
        ({"SystemPrompt": "Be kind.", "system": None}, (Message("system", "Be kind."),), ""),
        ({"history": [["Cow?", "Vache"]]}, HISTORY, ""),
        ({"chat_history": [{"from": "human", "value": "Cow?"}, {"from": "gpt", "value": "Vache"}]}, HISTORY, ""),
        ({"previous_turns": json.dumps(["Cow?", "Vache"])}, HISTORY, ""),
        ({"context": "It is red."}, (), "\n\nIt is red."),
        ({"passage": ["It is red.", "Or not."], "system": " "}, (), "\n\nIt is red.\n\nOr not."),
        (
            {"context": "It is red.", "history": [["Cow?", "Vache"]], "system": "S"},
            (Message("system", "S"), *HISTORY),
            "\n\nIt is red.",
        ),
    ],
)
def test_parts_are_read_beside_any_format(name: str, columns: dict[str, Any], before: Any, after: str) -> None:
    row = EXAMPLES[name][0][-1]
    (plain,), (record,) = read(None, row), read(None, {**row, **columns})
    *_, last = turns = prompt_of(plain).messages
    assert prompt_of(record).messages == (*before, *turns[:-1], Message("user", last.content + after))
    (prompt,) = read("prompts", {**row, **columns})
    assert prompt.messages == prompt_of(record).messages


def test_a_part_that_the_messages_hold_is_not_written_twice() -> None:
    system = {"role": "system", "content": "Be kind."}
    turns = [system, {"role": "user", "content": "Cow?"}, {"role": "assistant", "content": "Vache"}, *TALK]
    columns = {"system": "Be kind. ", "history": [["Cow?", "Vache"]], "context": "Hi"}
    assert read("demonstrations", {"messages": turns, **columns}) == read("demonstrations", {"messages": turns})


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [*TALK, *TALK], "context": "It is red."}, "no place in a conversation of several turns"),
        ({**PAIR, "history": "Cow? Vache."}, "history is not a list of turns"),
        ({**PAIR, "history": [["Cow?"]]}, "history is not a list of pairs"),
        ({**PAIR, "system": 3}, "the system is not text"),
        ({**PAIR, "system": "A", "system_prompt": "B"}, "two system messages"),
        ({**PAIR, "question": "What?"}, "two columns hold a prompt"),
        ({"input": "Hi", "output": "Hello", "query": "What?"}, "two columns hold a prompt"),
    ],
)
def test_a_part_without_a_place_refuses_the_row(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRow, match=reason):
        read("demonstrations", row)


def test_a_template_of_the_prompt_beside_it_is_no_second_prompt() -> None:
    row = {"question": "Hi", "answer": "Hello", "prompt": "Answer this: Hi"}
    assert read("demonstrations", row) == [Demonstration(Prompt.of("Hi"), "Hello")]


# ---------------------------------------------------------------------------------------------------------------------
# the prompt of a pair


SIDES = {"chosen": "I think it is green.", "rejected": "I think it is seven."}


@pytest.mark.parametrize("name", ["user_prompt", "ask", "query_text", "text", "title", "Post", "context", "topic"])
def test_the_prompt_is_not_guessed_while_a_column_could_hold_it(name: str) -> None:
    row = {**SIDES, name: "Which colour is grass?"}
    (fault,) = _faults("rankings", row, has_flags=True)
    assert fault.reason == "chosen and rejected stand without a prompt column"
    assert fault.columns == f"prompt={name}"
    expected = Ranking(Prompt.of("Which colour is grass?"), tuple(SIDES.values()), (1, 2))
    assert read("rankings", row, columns=fault.columns) == [expected]


@pytest.mark.parametrize("columns", [{"prompt": None}, {"Prompt": ""}])
def test_an_empty_prompt_is_not_guessed(columns: dict[str, Any]) -> None:
    with pytest.raises(BadRow, match="empty"):
        read("rankings", {**SIDES, **columns})


@pytest.mark.parametrize("columns", [{}, {"id": "a b c d", "source": "the web", "turns": 2, "topic": "colours"}])
def test_without_such_a_column_the_shared_beginning_is_the_prompt(columns: dict[str, Any]) -> None:
    (record,) = read("rankings", {**SIDES, **columns})
    assert record == Ranking(Prompt.of("I think it is"), ("green.", "seven."), (1, 2))


def _faults(kind: Any, *rows: Any, **options: Any) -> list[BadRow]:
    source = RowSource(rows, kind, **options)
    list(source)
    return source.faults


# ---------------------------------------------------------------------------------------------------------------------
# names


@pytest.mark.parametrize("names", [("Prompt", "Completion"), ("PROMPT ", " completion"), ("prompt", "COMPLETION")])
def test_names_are_compared_without_case_and_blanks(names: tuple[str, str]) -> None:
    assert read("demonstrations", dict(zip(names, PAIR.values(), strict=True))) == read("demonstrations", PAIR)


def test_two_spellings_of_one_name_are_refused() -> None:
    with pytest.raises(BadRow, match="two columns have the same name but for its spelling"):
        read("demonstrations", {**PAIR, "Prompt": "Ho"})


def test_columns_are_named_by_a_flag() -> None:
    row = {"ask": "Hi", "reply": "Hello", "prompt": 7, "label": "sports", "n": 1}
    named = "prompt=ask, response=reply, ignore=label"
    source = RowSource((row,), "demonstrations", columns=named)
    (record,) = source
    assert record == Demonstration(Prompt((Message("user", "Hi"),), {"label": "sports", "n": 1}), "Hello")
    row = {"q": "Hi", "good": "a", "poor": "b", "rules": "Be kind."}
    (ranking,) = read("rankings", row, columns="prompt=q,chosen=good,rejected=poor,system=rules")
    assert ranking == Ranking(Prompt((Message("system", "Be kind."), Message("user", "Hi"))), ("a", "b"), (1, 2))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("prompt", "is not NAME=COLUMN"),
        ("prompt=", "is not NAME=COLUMN"),
        ("foo=bar", "'foo' is no column that is read"),
    ],
)
def test_what_the_flag_cannot_say(text: str, reason: str) -> None:
    with pytest.raises(UserError, match=f"--columns {text}: .*{reason}"):
        Columns(text)
    with pytest.raises(BadRow, match="names a column that the row lacks"):
        read("demonstrations", PAIR, columns="prompt=ask")


def test_hints_name_only_flags_that_the_command_has() -> None:
    row = {"ask": "Hi", "reply": "Hello"}
    for has_flags, way_out in ((True, "try --columns prompt=ask,response=reply"), (False, "rename or remove columns")):
        source = RowSource((row,), "demonstrations", has_flags=has_flags)
        assert not list(source)
        assert way_out in source.refused.summary() and ("--" in source.refused.summary()) == has_flags
    for kind, hint in (("rankings", ""), ("prompts", "prompt=ask"), ("texts", "")):
        (fault,) = _faults(kind, row)
        assert fault.columns == hint


@pytest.mark.parametrize(
    ("row", "hint"),
    [
        ({"toy_question": "a", "toy_answer": "b", "id": 1}, "prompt=toy_question,response=toy_answer"),
        ({"instruction": "a", "skill": "b", "level": 1}, "prompt=instruction"),  # a skill is no answer
        ({"task": "a", "output_1": "b", "output_2": "c"}, ""),  # two may be the answer
        ({"text": "a", "answer_id": "b", "model_id": "c"}, ""),  # an answer, not a prompt
        ({"text": "a", "question_id": 1}, "prompt=text"),
    ],
)
def test_a_hint_names_what_can_be_nothing_else(row: dict[str, Any], hint: str) -> None:
    (fault,) = _faults(None, row)
    assert fault.columns == hint


@pytest.mark.parametrize("names", [("response 1", "response 2"), ("output_a", "output_b"), ("Answer1", "Answer2")])
def test_a_prompt_beside_numbered_answers_is_no_prompt_alone(names: tuple[str, str]) -> None:
    row = {"prompt": "a", names[0]: "b", names[1]: "c", "label": 0}
    (fault,) = _faults(None, row)
    assert fault.reason == UNKNOWN and "as prompts alone" in fault.detail


# ---------------------------------------------------------------------------------------------------------------------
# text


@pytest.mark.parametrize(
    "columns",
    [
        {"label": 1},
        {"role": "user"},
        {"prompt": "Once"},
        {"system": "S"},
        {"summary": "x"},
        {"reply": "It is so then."},
    ],
)
def test_a_text_that_is_a_part_of_something_is_no_pretraining_text(columns: dict[str, Any]) -> None:
    for kind in ("texts", None):
        with pytest.raises(BadRow):
            read(kind, {"text": "Once upon a time.", **columns})


@pytest.mark.parametrize("columns", [{}, {"url": "x", "dump": "y"}, {"meta": {"a": 1}, "title": "A long title of it"}])
def test_a_text_may_say_where_it_is_from(columns: dict[str, Any]) -> None:
    assert [text.text for text in read(None, {"text": "Once.", **columns})] == ["Once."]


# ---------------------------------------------------------------------------------------------------------------------
# objects that hold rows, and lists as text


@pytest.mark.parametrize(
    ("row", "form"),
    [
        ({"prompt": {"0": "Hi", "1": "Ho"}, "completion": {"0": "Hello", "1": "Hey"}}, "an object per column"),
        ({"columns": ["prompt"], "index": [0], "data": [["Hi"]]}, "orient 'split'"),
        ({"schema": {"fields": []}, "data": [{"prompt": "Hi"}]}, "orient 'table'"),
        ({"0": {"prompt": "Hi"}, "1": {"prompt": "Ho"}}, "an object per row"),
        ({"a1": {"prompt": "Hi"}, "b2": {"prompt": "Ho"}}, "an object per row"),
        ({"features": [], "rows": [{"row_idx": 0, "row": PAIR}]}, "the hub's viewer"),
        ({"version": "1", "data": [PAIR]}, "rows in 'data'"),
        ({"train": [PAIR], "test": [PAIR]}, "rows in 'train' and 'test'"),
    ],
)
def test_an_object_that_holds_rows_is_named(row: dict[str, Any], form: str) -> None:
    for kind in (None, "demonstrations", "prompts"):
        (fault,) = _faults(kind, row)
        assert fault.reason.startswith("the object holds rows") and form in fault.detail


def test_lists_in_the_columns_are_rows_or_turns() -> None:
    for kind in (None, "demonstrations", "prompts"):
        (fault,) = _faults(kind, {"prompt": ["Hi", "Ho"], "completion": ["Hello", "Hey"]})
        assert fault.reason == "the columns hold lists of texts: several rows, or the turns of a conversation"
        (fault,) = _faults(kind, {"input_ids": [5, 9], "labels": [5, 9]})
        assert fault.reason == "the columns hold lists of numbers, not text"


def test_a_list_of_messages_is_a_conversation_and_a_message_or_text_alone_no_row() -> None:
    assert read("demonstrations", TALK) == read("demonstrations", {"messages": TALK})
    (fault,) = _faults(None, TALK[0])
    assert fault.reason == "the row is a message, not a conversation"
    (fault,) = _faults("prompts", "Hi")
    assert fault.reason == "the row is a text, not an object with columns"


def test_lines_of_lists_are_conversations(tmp_path: Path) -> None:
    path = tmp_path / "talks.jsonl"
    path.write_text("\n".join(json.dumps(TALK) for _ in range(3)))
    source: Source[Demonstration] = Source(str(path), "demonstrations")
    assert len(list(source)) == 3
    path.write_text(json.dumps([PAIR, PAIR]))
    assert len(list(Source(str(path), "demonstrations"))) == 2


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[1, 2]", [1, 2]),
        ("[1 2]", [1, 2]),
        ("['Green.' 'Seven.']", ["Green.", "Seven."]),
        ("['a, b' \"it's\"\n 'c']", ["a, b", "it's", "c"]),
        (
            "[{'role': 'user', 'content': 'a'}\n {'role': 'assistant', 'content': 'b, c'}]",
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b, c"}],
        ),
        ("array(['a', 'b'], dtype=object)", ["a", "b"]),
        ("[array([1, 2]), array([3], dtype=int64)]", [[1, 2], [3]]),
        ("[[1 2]\n [3 4]]", [[1, 2], [3, 4]]),
        ("{'a': None, 'b': [True]}", {"a": None, "b": [True]}),
        ("{1, 2}", "{1, 2}"),
        ("[(1, inf), 1e999]", "[(1, inf), 1e999]"),
        ("[(1, 2.5), 1e999]", [[1, 2.5], None]),
        ("{1: 'x'}", {"1": "x"}),
        ("[INST] x", "[INST] x"),
        ("[__import__('os')]", "[__import__('os')]"),
    ],
)
def test_lists_as_text(text: str, value: Any) -> None:
    assert parse_list(text) == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("['a' 'b', 'c']", "commas between some"),
        ("[1 2 ... 9]", "cut short"),
        ('[{"a": 1, "a": 2}]', "stands twice"),
        ("[" * 300 + "]" * 300, "nested"),
    ],
)
def test_lists_as_text_that_cannot_be_known(text: str, reason: str) -> None:
    """Python would join two strings without a comma between them into one."""
    assert reason in str(parse_list(text))
    assert isinstance(parse_list(text), BadRow)


def test_tables_of_pandas_and_datasets(tmp_path: Path) -> None:
    """Messages and answers as Python and numpy print them; Excel's first line; cells that stand for nothing."""
    numpy_style = "[" + "\n ".join(map(repr, TALK)) + "]"
    for cells in (["messages", json.dumps(TALK)], ["messages", repr(TALK)], ["Messages", numpy_style]):
        assert _table(tmp_path, [cells[:1], cells[1:]]) == read("demonstrations", {"messages": TALK})
    rows = [
        ["prompt", "chosen", "rejected"],
        [repr(TALK[:1]), repr(TALK[1:]), "[{'role': 'assistant', 'content': 'No'}]"],
    ]
    assert _table(tmp_path, rows, "rankings") == [Ranking(Prompt.of("Hi"), ("Hello", "No"), (1, 2))]
    rows = [["prompt", "responses", "ranks"], ["Hi", "['a' 'b']", "[2 1]"]]
    assert _table(tmp_path, rows, "rankings") == [Ranking(Prompt.of("Hi"), ("a", "b"), (2, 1))]
    (tmp_path / "x.csv").write_text("sep=;\nprompt;completion\nHi, you;Hello\n")
    assert next(iter(Source(str(tmp_path / "x.csv"), "demonstrations"))).prompt == Prompt.of("Hi, you")


def _table(folder: Path, rows: list[list[str]], kind: Any = "demonstrations") -> list[Any]:
    with open(folder / "x.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return list(Source(str(folder / "x.csv"), kind, strict=True))


@pytest.mark.parametrize("cell", ["nan", "NULL", "N/A", "None", ""])
def test_cells_that_stand_for_nothing_are_empty(tmp_path: Path, cell: str) -> None:
    (tmp_path / "x.csv").write_text(f"prompt,completion\nHi,{cell}\nHo,Hey\n")
    source: Source[Demonstration] = Source(str(tmp_path / "x.csv"), "demonstrations")
    assert [record.response for record in source] == ["Hey"]
    assert [refusal.reason for refusal in source.refused] == ["a needed column is empty"]


def test_a_table_without_a_header_is_suspected(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("Name a colour.,Green.\nName a fish.,Cod.\n")
    with pytest.raises(UserError, match=r"x\.csv:1: the first line seems to be a row, not a header"):
        list(Source(str(tmp_path / "x.csv"), "demonstrations"))


# ---------------------------------------------------------------------------------------------------------------------
# a column that is empty, or of another form, in some rows


def test_a_row_whose_answer_is_missing_is_no_prompt_alone() -> None:
    rows = (PAIR, {"prompt": "Ho", "completion": None}, {"prompt": "Ho"})
    source = RowSource(rows, None)
    assert [type(record) for record in source] == [Demonstration, Prompt]
    assert [str(fault) for fault in source.faults] == ["a needed column is empty (completion)"]


@pytest.mark.parametrize("last", [{**PAIR, "completion": 3}, {"prompt": "Hi"}, {**PAIR, "label": None}, "Hi", [1]])
def test_a_last_row_of_another_form_changes_no_other(last: Any) -> None:
    rows = [{"prompt": f"P{number}", "completion": "Hello"} for number in range(2000)]
    source = RowSource((*rows, last), "demonstrations")
    assert len(list(source)) == 2000 and len(source.faults) == 1


def test_a_column_that_changes_its_type_halfway() -> None:
    rows = [
        {"prompt": f"P{n}", "completion": "Hello" if n < 50 else [TALK[1]], "label": n < 50 or "good"}
        for n in range(100)
    ]
    assert [record.response for record in read("demonstrations", *rows)] == ["Hello"] * 100
