"""Rankings go to Argilla's and Label Studio's forms and come back whole: ranks, names, times and all other columns."""

import json
from pathlib import Path
from typing import Any

import pytest

from lora_rlhf.data.schema import make_row
from lora_rlhf.data.sources import read_rankings
from lora_rlhf.inspection.config import ConvertConfig
from lora_rlhf.inspection.convert import convert
from lora_rlhf.system.errors import UserError

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
COLOURS = {"prompt": "Name a colour.", "responses": ["Seven.", "Green.", "Blue."]}
ROWS: list[dict[str, Any]] = [
    {**COLOURS, "ranks": [2, 1, 1], "labeler": "Ada L.", "seconds": 12.5, "saved": 1.7e9, "ended": [True, True, False]},
    {"prompt": "Anon?", "responses": ["No", "Yes"], "ranks": [1, 1]},
    # columns that would mean something in another format
    {**COLOURS, "ranks": [3, 1, 2], "labeler": "bo@x.org", "is_safe": False, "weight": 0, "task": "t", "ratings": [1]},
    {
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
        "responses": [[{"role": "assistant", "content": "[{a"}], "Hello"],
        "ranks": [4, 2],
        "labeler": "7",
        "tools": [TOOL],
    },
]


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("form", ["argilla", "label-studio"])
def test_rankings_come_back_from_a_labelling_tools_form(tmp_path: Path, form: Any) -> None:
    there, back = str(tmp_path / "there.json"), str(tmp_path / "back.jsonl")
    file = write(tmp_path / "rankings.jsonl", ROWS)
    assert convert(ConvertConfig(file=file, to=there, form=form)) == (4, 3, "")
    assert convert(ConvertConfig(file=there, to=back))[:2] == (4, 4)
    rows = list(map(json.loads, Path(back).read_text().splitlines()))
    assert rows == [ROWS[0], ROWS[2], ROWS[1], ROWS[3]]  # rankings of the same responses stand together
    tasks = Path(there).read_text()
    assert "Ada L." in tasks and ('"ranking.responses.users": ["Ada L.", "bo@x.org"]' in tasks) == (form == "argilla")
    assert ('"completed_by": {"email": "bo@x.org"}' in tasks and '"completed_by": 7' in tasks) == (form != "argilla")
    with pytest.raises(UserError, match="there already"):
        convert(ConvertConfig(file=file, to=there, form=form))


def test_a_ranker_of_label_studio_is_read_with_who_and_how_long(tmp_path: Path) -> None:
    data = {"prompt": "Name a colour.", "answers": [{"id": "a", "title": "Red."}, {"id": "b", "body": "No."}]}

    def task(ranker: Any, **about: Any) -> dict[str, Any]:
        return {"data": data, "annotations": [{"result": [{"type": "ranker", "value": {"ranker": ranker}}], **about}]}

    email = {"id": 3, "email": "eve@x.org"}
    tasks = [task({"rank": ["b", "a"]}, lead_time=4, completed_by=email), task(["a", "b"], completed_by=9),
             task({"good": ["a"], "bad": ["b"]}), task({"1": ["a"], "_": ["b"]})]  # fmt: skip
    rankings, refused = read_rankings(write(tmp_path / "tasks.jsonl", tasks))
    common = {"prompt": "Name a colour.", "responses": ["Red.", "No."]}
    assert list(map(make_row, rankings)) == [
        {**common, "ranks": [2, 1], "labeler": "eve@x.org", "seconds": 4},
        {**common, "ranks": [1, 2], "labeler": "9"},
    ]
    assert set(refused.reasons_by_count()) == {"a bucket of the ranker is not named by its rank"}
