"""`lora-rlhf data convert`: rankings into this project's own format, or into a labelling tool's, without a loss."""

import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lora_rlhf.data.io import write_jsonl
from lora_rlhf.data.outputs import require_output
from lora_rlhf.data.schema import Ranking, make_row
from lora_rlhf.data.sources import Source
from lora_rlhf.inspection.config import ConvertConfig
from lora_rlhf.system.disk import new_file
from lora_rlhf.system.errors import UserError

Row = dict[str, Any]


def convert(config: ConvertConfig) -> tuple[int, int, str | None]:
    """Runs the command; returns (rankings, rows written, what was refused).

    A row of a tool holds all rankings of the same responses to a prompt, one for each person. UserError for a file
    without rankings, for an output that is an input or there already, and with `strict` for a refused row.
    """
    require_output("--to", config.to, [config.file])
    if Path(config.to).exists() and not config.overwrite:
        raise UserError(f"--to {config.to}: the file is there already; name another, or give --overwrite")
    source: Source[Ranking] = Source(
        config.file, "rankings", config.format, config.strict, columns=config.columns, has_flags=True
    )
    rows = list(map(make_row, source))
    num_rankings = len(rows)
    if config.form == "argilla":
        rows = [_argilla_record(group) for group in _groups(rows)]
    elif config.form == "label-studio":
        rows = [_label_studio_task(group) for group in _groups(rows)]
        with new_file(Path(config.to)) as file:  # Label Studio imports a JSON list; a row a line can be read by people
            file.write(("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n").encode())
        return num_rankings, len(rows), source.refused.summary()
    return num_rankings, write_jsonl(config.to, rows), source.refused.summary()


def _groups(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """The rankings of the same responses to the same prompt, in the order of the first of each."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        key = json.dumps([row["prompt"], row["responses"], row.get("tools")], sort_keys=True)
        groups.setdefault(key, []).append(row)
    yield from groups.values()


def _columns(row: Row) -> Row:
    """What neither tool has a place for: the row's other columns, and who ranked and what ended."""
    return {name: value for name, value in row.items() if name not in ("prompt", "responses", "ranks", "tools")}


def _argilla_record(rows: list[Row]) -> Row:
    """A record of Argilla's flattened export, with one ranking for each person."""
    first = rows[0]
    record: Row = {"prompt": first["prompt"]}
    record |= {f"response-{number}": response for number, response in enumerate(first["responses"], start=1)}
    if "tools" in first:
        record["tools"] = first["tools"]
    return record | {
        "ranking.responses": [_argilla_order(row["ranks"]) for row in rows],
        "ranking.responses.users": [row.get("labeler") for row in rows],
        "ranking.responses.status": ["submitted"] * len(rows),
        "ranking.responses.columns": [_columns(row) for row in rows],
    }


def _argilla_order(ranks: list[int]) -> list[Any]:
    """The names of the responses, the best first; with their ranks where the order alone does not tell them."""
    ordered = sorted(enumerate(ranks, start=1), key=lambda pair: pair[1])
    if [rank for _, rank in ordered] == list(range(1, len(ranks) + 1)):
        return [f"response-{number}" for number, _ in ordered]
    return [{"value": f"response-{number}", "rank": rank} for number, rank in ordered]


def _label_studio_task(rows: list[Row]) -> Row:
    """A task of Label Studio's JSON with one annotation for each person, by a Ranker whose buckets are the ranks."""
    first = rows[0]
    items = [{"id": f"response-{index}", "body": text} for index, text in enumerate(first["responses"], start=1)]
    task: Row = {"data": {"prompt": first["prompt"], "items": items}}
    if "tools" in first:
        task["tools"] = first["tools"]
    return task | {"annotations": [_label_studio_annotation(row) for row in rows]}


def _label_studio_annotation(row: Row) -> Row:
    buckets: dict[str, list[str]] = {}
    for rank, index in sorted((rank, index) for index, rank in enumerate(row["ranks"], start=1)):
        buckets.setdefault(str(rank), []).append(f"response-{index}")
    result = {"from_name": "rank", "to_name": "answers", "type": "ranker", "value": {"ranker": buckets}}
    annotation: Row = {"result": [result | {"meta": {"columns": _columns(row)}}]}
    name, seconds, saved = (row.get(column) for column in ("labeler", "seconds", "saved"))
    if name is not None and name.isdecimal():
        annotation["completed_by"] = int(name)
    elif name is not None and "@" in name:  # the server refuses other names; they are in the columns
        annotation["completed_by"] = {"email": name}
    if isinstance(seconds, int | float):
        annotation["lead_time"] = seconds
    if isinstance(saved, int | float):
        annotation["created_at"] = datetime.fromtimestamp(saved, UTC).isoformat().replace("+00:00", "Z")
    return annotation
