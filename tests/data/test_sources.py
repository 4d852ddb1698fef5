"""A name to records: every usable one, every refusal with its place, and a question where the rows leave a doubt."""

import dataclasses
import gzip
import json
import random
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, IterableDataset

from lora_rlhf.data.formats import RecordKind
from lora_rlhf.data.groups import MAX_ITEMS
from lora_rlhf.data.io import write_jsonl
from lora_rlhf.data.schema import Demonstration, Message, Prompt, Ranking, Text
from lora_rlhf.data.sources import (
    Source,
    every_turn,
    read_prompts,
    read_rankings,
    read_texts,
)
from lora_rlhf.system.errors import UserError

GOOD = '{"prompt": "a", "completion": "b"}\n'
PAIR = {"prompt": "a", "completion": "b"}
DOUBTFUL = {"prompt": "a", "completion": "b", "response": "c"}  # either column may be the answer
RATINGS = dict.fromkeys(("correctness", "coherence", "complexity", "verbosity"), 1)


def jsonl(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def rated(prompt: Any, response: Any, helpfulness: Any) -> dict[str, Any]:
    """A row of HelpSteer."""
    return {"prompt": prompt, "response": response, "helpfulness": helpfulness, **RATINGS}


def demonstrations(name: Path | str, strict: bool = False) -> list[Demonstration]:
    return list(Source(str(name), "demonstrations", strict=strict))


def read(path: Path | str, kind: RecordKind | None = None, **options: Any) -> tuple[list[Any], Source]:
    source: Source = Source(str(path), kind, has_flags=True, **options)
    records = list(source)
    assert source.used + source.refused.count == source.read
    assert source.records == len(records) and source.formats.total() == source.used
    return records, source


# ---------------------------------------------------------------------------------------------------------------------
# counting


def test_every_row_is_used_or_refused_with_its_place(tmp_path: Path) -> None:
    rows = [PAIR, {"prompt": "a"}, "", "not json", [1], PAIR, {"prompt": " ", "completion": "b"}]
    path = jsonl(tmp_path / "rows.jsonl", rows)
    records, source = read(path, "demonstrations")
    assert [record.prompt.origin for record in records] == [f"{path}:1", f"{path}:6"]
    assert (source.read, source.used, source.records, source.refused.count) == (6, 2, 2, 4)
    assert source.formats == {"prompt-completion": 2}
    assert {refusal.origin: refusal.reason for refusal in source.refused} == {
        f"{path}:2": "the row holds prompts, not demonstrations; prompts are for lora-rlhf ppo --prompts",
        f"{path}:4": "the line is not JSON",
        f"{path}:5": "the row is not an object with columns",
        f"{path}:7": "the prompt is empty",
    }


def test_a_row_that_gives_several_records_is_one_row(tmp_path: Path) -> None:
    second = {"text": "c", "role": "prompter", "replies": [{"text": "d", "role": "assistant", "rank": 0}]}
    tree = {"text": "a", "role": "prompter", "replies": [{"text": "b", "role": "assistant", "replies": [second]}]}
    path = jsonl(tmp_path / "trees.jsonl", [{"message_tree_id": "1", "prompt": tree, "lang": "en"}])
    records, source = read(path, "demonstrations")
    assert [record.response for record in records] == ["b", "d"]
    assert (source.read, source.used, source.records) == (1, 1, 2) and source.formats == {"oasst": 1}
    assert [(record.prompt.meta, record.prompt.origin) for record in records] == [({"lang": "en"}, f"{path}:1")] * 2


def test_a_source_can_be_read_again_and_counts_anew(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "rows.jsonl", [PAIR, {"prompt": "a"}])
    source: Source[Demonstration] = Source(str(path), "demonstrations")
    assert list(source) == list(source)
    assert (source.read, source.used, source.refused.count) == (2, 1, 1)
    jsonl(path, [PAIR, PAIR, PAIR])
    assert len(list(source)) == 3 and (source.read, source.refused.count) == (3, 0)


def test_rows_stream(tmp_path: Path) -> None:
    """A record is there before the rows behind it are read."""
    path = jsonl(tmp_path / "rows.jsonl", [PAIR] * 5)
    source: Source[Demonstration] = Source(str(path), "demonstrations")
    rows = iter(source)
    next(rows)
    assert (source.read, source.used) == (1, 1)


@pytest.mark.parametrize("packed", [False, True])
def test_strict_stops_at_the_first_bad_row(tmp_path: Path, packed: bool) -> None:
    text = (GOOD + '\n{"prompt": "a"}\n' + GOOD).encode()
    path = tmp_path / "rows.jsonl"
    path.write_bytes(gzip.compress(text) if packed else text)
    with pytest.raises(UserError, match=r"rows\.jsonl:3: the row holds prompts, not demonstrations.*--strict"):
        demonstrations(path, strict=True)
    assert len(demonstrations(path)) == 2


def test_a_group_that_is_refused_stops_a_strict_reading_too(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "rows.jsonl", [rated("p", "a", 1)])
    with pytest.raises(UserError, match=r"rows\.jsonl:1: a ranking needs at least 2 rows of one prompt"):
        read_rankings(str(path), strict=True)


def test_the_unused_columns_go_with_the_prompt(tmp_path: Path) -> None:
    row = {"instruction": "a", "input": "", "output": "b", "text": "whole", "answer": 4, "note": None, "tags": ["x"]}
    records, _ = read(jsonl(tmp_path / "rows.jsonl", [row]), "demonstrations")
    assert records[0].prompt.meta == {"answer": 4, "note": None, "tags": ["x"]}


def test_an_unused_column_does_not_take_the_place_of_what_is_written(tmp_path: Path) -> None:
    """row_of writes a ranking's own columns: one of the same name, kept beside it, would come back as the ranking's."""
    row = {"history": "a", "human_ref_A": "b", "human_ref_B": "c", "labels": 1, "labeler": "Eve", "completion": "x"}
    (record,), _ = read(jsonl(tmp_path / "shp.jsonl", [row]), "rankings")
    assert record == Ranking(Prompt((Message("user", "a"),), {"completion": "x"}), ("b", "c"), (1, 2))


# ---------------------------------------------------------------------------------------------------------------------
# damage, and files without a usable row


def damaged(path: Path, how: str) -> str:
    """Writes a file that breaks off; returns the reason."""
    if how == "list":
        path.write_text("[" + GOOD + ", " + GOOD + ', {"prompt": "a", "comp')
        return "the JSON text breaks off"
    drawn = random.Random(0)
    packed = gzip.compress("".join(GOOD.replace("a", str(drawn.random())) for _ in range(2000)).encode())
    if how == "cut":
        path.write_bytes(packed[: len(packed) // 2])
        return "the gzip data break off"
    path.write_bytes(packed[:-8] + b"\1\2\3\4" + packed[-4:])
    return "the gzip data are damaged"


@pytest.mark.parametrize("how", ["list", "cut", "checksum"])
def test_damage_is_an_error_with_its_place_unless_tolerated(tmp_path: Path, how: str) -> None:
    path = tmp_path / "rows"
    reason = damaged(path, how)
    with pytest.raises(UserError, match=rf"rows:\d+( row 3)?: {reason}"):
        demonstrations(path)
    records, source = read(path, "demonstrations", tolerant=True)
    assert source.used == len(records) and source.read == source.used + 1
    # some rows are behind the place where a packed file breaks
    assert len(records) in {"list": [2], "cut": range(500, 1500), "checksum": range(1900, 2001)}[how]
    place = f"{path}:3 row 3" if how == "list" else f"{path}:{source.read}"
    assert [(refusal.origin, refusal.reason) for refusal in source.refused] == [(place, reason)]


def test_a_hub_dataset_that_breaks_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows() -> Iterator[dict[str, Any]]:
        yield PAIR
        yield {"prompt": "a"}
        raise ConnectionError("reset by peer")

    stream = IterableDataset.from_generator(rows)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: stream)
    with pytest.raises(UserError, match=r"owner/name:test row 3: the dataset cannot be read further .*reset by peer"):
        demonstrations("owner/name:test")
    records, source = read("owner/name:test", "demonstrations", tolerant=True)
    assert [record.prompt.origin for record in records] == ["owner/name:test row 1"]
    assert [refusal.origin for refusal in source.refused] == ["owner/name:test row 2", "owner/name:test row 3"]


def test_behind_a_damaged_file_the_others_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[" + GOOD)
    (tmp_path / "b.jsonl").write_text(GOOD)
    records, source = read(tmp_path, "demonstrations", tolerant=True)
    assert [record.prompt.origin for record in records] == [f"{tmp_path}/a.json:1 row 1", f"{tmp_path}/b.jsonl:1"]
    assert [refusal.origin for refusal in source.refused] == [f"{tmp_path}/a.json:2 row 2"]


@pytest.mark.parametrize("text", ["", "\n  \n", "[]"])
def test_an_empty_file_is_an_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "empty.json"
    path.write_text(text)
    for reader in (demonstrations, read_rankings, read_prompts, read_texts):
        with pytest.raises(UserError, match=r"empty\.json: no rows; the file is empty"):
            reader(str(path))
    assert read(path, None, tolerant=True)[1].read == 0


def test_a_file_without_a_usable_row_is_an_error_with_the_first_reasons(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "rows.jsonl", [{"question": "a", "reply": "b"}] * 5)
    with pytest.raises(UserError) as caught:
        demonstrations(path)
    message = str(caught.value)
    assert "none of its 5 rows can be used" in message and "5 refused: no known format" in message
    assert "(found question, reply; nearest is question-answer, which lacks answer; as prompts" in message
    assert f"{path}:3" in message and f"{path}:4" not in message
    assert read(path, "demonstrations", tolerant=True)[1].refused.count == 5


def test_what_is_not_there_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/script.py").touch()
    for name, message in [
        ("missing.jsonl", "no such file"),
        ("folder/missing.jsonl.gz", "no such file"),
        ("./not/a/hub/name", "no such file"),
        ("folder", r"no data in this folder \(it holds script\.py\)"),
        ("folder/*.jsonl", "no file matches"),
        ("", "an empty name"),
    ]:
        with pytest.raises(UserError, match=message):
            read_texts(name)


# ---------------------------------------------------------------------------------------------------------------------
# several formats


def test_a_doubt_is_asked_and_answered(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "rows.jsonl", [DOUBTFUL, {**DOUBTFUL, "response": "x" * 100}])
    for tolerant in (False, True):
        with pytest.raises(UserError) as caught:
            list(Source(str(path), "demonstrations", tolerant=tolerant, has_flags=True))
    message = str(caught.value)
    assert message.startswith(f"{path}: its rows fit several formats; say which one with --format:")
    assert '--format prompt-completion demonstrations: "a" -> "b"' in message
    assert '--format prompt-response demonstrations: "a" -> "c"' in message
    assert f'the row at {path}:1: {{"prompt": "a", "completion": "b"' in message
    with pytest.raises(UserError, match="several formats; remove the columns that are not meant:\n  prompt-completion"):
        list(Source(str(path), "demonstrations"))  # of a command without the flag
    for name, answers in (("prompt-completion", ["b", "b"]), ("prompt-response", ["c", "x" * 100])):
        records, source = read(path, "demonstrations", format=name)
        assert [record.response for record in records] == answers and source.formats == {name: 2}


def test_the_question_shows_what_is_asked_for_and_no_more_of_the_row_than_fits(tmp_path: Path) -> None:
    row = {**rated("a\x1b[31m", "best", 4), "completion": "x" * 5000}
    path = jsonl(tmp_path / "rows.jsonl", [row])
    with pytest.raises(UserError) as caught:
        list(Source(str(path), "demonstrations", has_flags=True))
    message = str(caught.value)
    assert f'--format prompt-completion demonstrations: "a\\u001b[31m" -> "{"x" * 60}"...' in message
    assert '--format helpsteer      demonstrations: "a\\u001b[31m" -> "best"' in message
    assert len(message) < 1000 and "\x1b" not in message
    with pytest.raises(UserError, match=r"--format helpsteer +rankings and demonstrations and prompts: .a.* -> .best"):
        list(Source(str(path), None, has_flags=True))


@pytest.mark.parametrize("first", [PAIR, {"prompt": "a", "completion": ""}])
def test_a_doubtful_row_is_read_as_the_rows_before_it(tmp_path: Path, first: dict) -> None:
    """From the second row on, and also behind one that could not be used."""
    records, source = read(jsonl(tmp_path / "rows.jsonl", [first, DOUBTFUL, DOUBTFUL]), "demonstrations")
    assert [record.response for record in records][-2:] == ["b", "b"]
    assert list(source.formats) == ["prompt-completion"]
    answered = {"prompt": "a", "response": "c"}
    records, _ = read(jsonl(tmp_path / "rows.jsonl", [answered, DOUBTFUL]), "demonstrations")
    assert [record.response for record in records] == ["c", "c"]


def test_a_doubtful_row_among_others_is_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "rows.jsonl", [{"instruction": "a", "output": "b"}, DOUBTFUL, rated("p", "c", 1)])
    records, source = read(path, "demonstrations")
    assert [record.response for record in records] == ["b", "c"]
    (refusal,) = source.refused
    assert refusal.origin == f"{path}:2" and refusal.reason == "the row fits several formats"
    assert refusal.detail == "prompt-completion, prompt-response; say which one with --format"


def test_a_doubt_that_makes_no_difference_is_not_asked(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "rows.jsonl", [DOUBTFUL, {**DOUBTFUL, "messages": [{"role": "user", "content": "a"}]}])
    records, _ = read(path, "prompts")
    assert [record.messages for record in records] == [(Message("user", "a"),)] * 2
    jsonl(path, [{"prompt": "a", "question": "other", "response": "b"}])
    with pytest.raises(UserError, match=r'(?s)--format prompt-response prompts: "a".*--format orca +prompts: "other"'):
        list(Source(str(path), "prompts", has_flags=True))


def test_a_format_can_be_named_also_where_another_fits_better(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": "b", "response": "c"}, {"question": "x", "response": "y" * 1000}]
    path = jsonl(tmp_path / "rows.jsonl", rows)
    records, source = read(path, "demonstrations", format="prompt-completion")
    assert records == [Demonstration(Prompt((Message("user", "a"),), {"response": "c"}), "b")]
    (refusal,) = source.refused
    assert (
        refusal.reason == "the row is not of format prompt-completion"
        and refusal.detail == "it lacks prompt, completion; found question, response"
    )


def test_a_format_of_another_kind_or_of_no_known_name_is_an_error() -> None:
    cases: list[tuple[str, Any, str]] = [
        ("alpaca", "rankings", "demonstrations and prompts"),
        ("hh-rlhf", "demonstrations", "rankings and prompts"),
        ("text", "prompts", "texts"),
        ("prompt", "texts", "prompts"),
    ]
    for name, kind, held in cases:
        with pytest.raises(UserError, match=f"--format {name} holds {held}; {kind} are wanted from x.jsonl"):
            Source("x.jsonl", kind, name)
    with pytest.raises(UserError, match="did you mean alpaca"):
        Source("x.jsonl", "demonstrations", "alpacca")
    assert Source("x.jsonl", None, "alpaca").kind is None


def test_formats_can_be_mixed_in_a_file(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "e"}, {"from": "gpt", "value": "f"}]
    rows = [PAIR, {"instruction": "c", "output": "d"}, {"conversations": turns}, PAIR]
    records, source = read(jsonl(tmp_path / "rows.jsonl", rows), "demonstrations")
    assert [(record.prompt.messages[-1].content, record.response) for record in records] == [
        *(("a", "b"), ("c", "d"), ("e", "f"), ("a", "b"))
    ]
    assert source.formats == {"prompt-completion": 2, "alpaca": 1, "sharegpt": 1}


def test_without_a_kind_each_row_is_read_as_its_main_one(tmp_path: Path) -> None:
    rows = [PAIR, {"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "a"}, {"text": "t"}]
    records, _ = read(jsonl(tmp_path / "rows.jsonl", rows))
    prompt = Prompt.of("a")
    assert records == [Demonstration(prompt, "b"), Ranking(prompt, ("b", "c"), (1, 2)), prompt, Text("t")]


# ---------------------------------------------------------------------------------------------------------------------
# rows that belong together


def test_the_rows_of_a_prompt_are_one_ranking_wherever_they_stand(tmp_path: Path) -> None:
    rows = [rated("p", "a", 1), rated("q", "c", 0), rated("p", "b", 4), rated("q", "d", 0), rated("r", "e", 2)]
    path = jsonl(tmp_path / "rows.jsonl", [{**row, "n": number} for number, row in enumerate(rows)])
    records, source = read(path, "rankings")
    assert [(record.responses, record.ranks) for record in records] == [(("a", "b"), (2, 1)), (("c", "d"), (1, 1))]
    assert [(record.prompt.origin, record.prompt.meta) for record in records] == [
        (f"{path}:1", {"n": 0}),
        (f"{path}:2", {"n": 1}),
    ]
    assert (source.read, source.used, source.records) == (5, 4, 2) and source.formats == {"helpsteer": 4}
    assert [refusal.origin for refusal in source.refused] == [f"{path}:5"]


def test_rows_of_other_formats_and_refused_ones_do_not_part_a_group(tmp_path: Path) -> None:
    between = {"prompt": "x", "chosen": "y", "rejected": "z"}
    rows = [rated("p", "a", 1), "oops", {"x": 1}, between, rated("p", "b", 4)]
    records, source = read(jsonl(tmp_path / "rows.jsonl", rows), "rankings")
    assert [record.prompt.messages[0].content for record in records] == ["x", "p"]
    assert (source.used, source.refused.count) == (3, 2)


def test_a_row_of_a_group_that_is_no_answer_is_refused_alone(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "rows.jsonl", [rated("p", "a", 1), rated("p", "b", "N/A"), PAIR | {"label": 1}])
    records, source = read(path, "demonstrations")
    assert [record.response for record in records] == ["b", "a"]
    assert source.formats == {"unpaired": 1, "helpsteer": 1}
    assert [str(refusal) for refusal in source.refused] == [f"{path}:2: helpfulness is not a number (got str)"]


def test_a_group_that_contradicts_itself_is_refused_row_by_row(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "rows.jsonl", [rated("p", "a", 1), rated("p", "a", 2), rated("q", "b", 1)])
    records, source = read(path, "demonstrations")
    assert [record.response for record in records] == ["a", "b"] and source.refused.count == 1
    _, source = read(path, "rankings", tolerant=True)
    assert [refusal.origin for refusal in source.refused] == [f"{path}:{line}" for line in (1, 2, 3)]


def test_a_group_is_read_in_parts_where_it_would_fill_the_memory(tmp_path: Path) -> None:
    rows = [rated("p", str(number), number % 5) for number in range(MAX_ITEMS + 2)]
    records, source = read(jsonl(tmp_path / "rows.jsonl", rows), "rankings")
    assert [len(record.responses) for record in records] == [MAX_ITEMS, 2] and source.used == MAX_ITEMS + 2


# ---------------------------------------------------------------------------------------------------------------------
# prompts, texts, turns


def test_prompts_come_from_any_format(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a"},
        PAIR,
        {"prompt": "a", "responses": ["only one"], "ranks": [1]},
        {"instruction": "a", "output": ""},
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
        {"messages": [{"role": "user", "content": "a"}]},
        {"prompt": "a", "completion": "b", "label": False},
        {"prompt": "a", "completion": "c", "label": False},
    ]
    records, source = read(jsonl(tmp_path / "rows.jsonl", rows), "prompts")
    assert [record.messages for record in records] == [(Message("user", "a"),)] * 8 and source.used == 8


def test_texts_come_from_rows_or_from_a_text_file(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "texts.jsonl", [{"text": "One."}, {"text": " "}, {"text": "Two."}])
    records, refused = read_texts(str(tmp_path / "texts.jsonl"))
    assert ([record.text for record in records], refused.count) == (["One.", "Two."], 1)
    for data in (b"First.\n\nSecond.\n", gzip.compress(b"First.\n\nSecond.\n")):
        (tmp_path / "book.txt").write_bytes(data)
        assert read_texts(str(tmp_path / "book.txt"))[0] == [Text("First.\n\nSecond.\n")]
    with pytest.raises(UserError, match="the row holds texts, not demonstrations"):
        demonstrations(tmp_path / "book.txt")


def test_every_turn_of_a_conversation() -> None:
    said = [("system", "s"), ("user", "1"), ("assistant", "2"), ("user", "3"), ("assistant", " "), ("assistant", "5")]
    said += [("user", " "), ("assistant", "7"), ("user", "8"), ("assistant", "9"), ("user", "10")]
    messages = tuple(Message(role, text) for role, text in said)
    whole = Demonstration(Prompt(messages, {"n": 1}, "x:1"), "11")
    found = list(every_turn([whole]))
    # an answer is learned where it follows what a user said: not 5, and not 7, which answers nothing
    assert [(len(each.prompt.messages), each.response) for each in found] == [(2, "2"), (9, "9"), (11, "11")]
    assert all(each.prompt.messages == messages[: len(each.prompt.messages)] for each in found)
    assert {(str(each.prompt.meta), each.prompt.origin) for each in found} == {("{'n': 1}", "x:1")}
    unlearned = dataclasses.replace(messages[2], is_trained=False)
    marked = dataclasses.replace(whole.prompt, messages=(*messages[:2], unlearned, *messages[3:]))
    assert [each.response for each in every_turn([Demonstration(marked, "11")])] == ["9", "11"]


# ---------------------------------------------------------------------------------------------------------------------
# containers


CONTAINERS = {
    "x.jsonl": '{"prompt": "a", "completion": "b"}\n{"prompt": "c\\nd", "completion": "é"}\n',
    "x.json": '[{"prompt": "a", "completion": "b"},\n{"prompt": "c\\nd", "completion": "é"}]',
    "pretty.json": '{\n"prompt": "a",\n"completion": "b"\n}\n{\n"prompt": "c\\nd", "completion": "é"\n}\n',
    "x.csv": 'prompt,completion\na,b\n"c\nd",é\n',
    "x.tsv": 'prompt\tcompletion\na\tb\n"c\nd"\té\n',
    "crlf.csv": '\ufeffprompt;completion\r\na;b\r\n"c\nd";é\r\n',
}
PLACES = {
    "x.jsonl": ["1", "2"],
    "x.json": ["1 row 1", "2 row 2"],
    "pretty.json": ["1 row 1", "5 row 2"],
    "x.csv": ["2", "3"],
    "x.tsv": ["2", "3"],
    "crlf.csv": ["2", "3"],
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", CONTAINERS)
def test_a_format_is_read_from_any_container(tmp_path: Path, name: str, packed: bool) -> None:
    path = tmp_path / name
    data = CONTAINERS[name].encode()
    path.write_bytes(gzip.compress(data) if packed else data)
    records, _ = read(path, "demonstrations")
    assert records == [Demonstration(Prompt.of("a"), "b"), Demonstration(Prompt.of("c\nd"), "é")]
    assert [record.prompt.origin for record in records] == [f"{path}:{place}" for place in PLACES[name]]


def test_a_format_is_read_from_tables_and_saved_datasets(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Hi"}]
    sides = {"chosen": [*turns, {"role": "assistant", "content": "a"}]}
    sides["rejected"] = [*turns, {"role": "assistant", "content": "b"}]
    rows = [{**sides, "source": "web"}, {**sides, "source": None}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    for path in (tmp_path / "x.parquet", tmp_path / "saved"):
        records, source = read(path, "rankings")
        assert records[0] == Ranking(Prompt((Message("user", "Hi"),), {"source": "web"}), ("a", "b"), (1, 2))
        assert [record.prompt.origin for record in records] == [f"{path} row 1", f"{path} row 2"]
        assert source.formats == {"preference": 2}


def test_a_folder_and_a_pattern_are_one_source(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.csv", "deep/c.json.gz"):
        data = "prompt,completion\na,b\n,x\n" if name == "a.csv" else GOOD
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(gzip.compress(data.encode()) if name.endswith("gz") else data.encode())
    (tmp_path / "README.md").write_text("# Data")
    records, source = read(tmp_path, "demonstrations")
    assert [record.prompt.origin for record in records] == [
        *(f"{tmp_path}/a.csv:2", f"{tmp_path}/b.jsonl:1", f"{tmp_path}/deep/c.json.gz:1")
    ]
    assert [refusal.origin for refusal in source.refused] == [f"{tmp_path}/a.csv:3"]
    records, _ = read(tmp_path / "*.jsonl", "demonstrations")
    assert [record.prompt.origin for record in records] == [f"{tmp_path}/b.jsonl:1"]


def test_a_number_too_large_for_a_float_is_none(tmp_path: Path) -> None:
    largest = int(sys.float_info.max)
    rows = [
        {**PAIR, "n": largest},
        {**PAIR, "n": -largest},
        {**PAIR, "n": largest * 10},
        {**PAIR, "n": [-largest * 10]},
    ]
    records, _ = read(jsonl(tmp_path / "rows.jsonl", rows), "demonstrations")
    assert [record.prompt.meta["n"] for record in records] == [largest, -largest, None, [None]]


def test_old_line_ends_are_no_fault(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b"prompt,completion\ra,b\rc,d\r")
    assert [record.response for record in read(tmp_path / "x.csv", "demonstrations")[0]] == ["b", "d"]
    (tmp_path / "x.txt").write_bytes(b"Well,\rthis is, after all, a text.\n")
    assert read(tmp_path / "x.txt", "texts")[0] == [Text("Well,\rthis is, after all, a text.\n")]


# ---------------------------------------------------------------------------------------------------------------------
# the import


def test_importing_the_sources_loads_no_heavy_library() -> None:
    code = (
        "import sys, lora_rlhf.data.sources\n"
        "print([name for name in ('torch', 'datasets', 'pyarrow', 'transformers', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
