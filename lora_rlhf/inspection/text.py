"""A report of `data check` as text for a terminal: a block for each file, shared prompts, and advice."""

import re
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import Any

from lora_rlhf.data.refusals import pluralize
from lora_rlhf.render.tables import align_columns
from lora_rlhf.render.wording import share_text

LINE_WIDTH = 100
LABEL_WIDTH = 17  # characters of the column of labels
MOST_REASONS = 8  # of refused rows
MOST_PLACES = 3  # of refused rows per reason
MOST_DETAIL_CHARACTERS = 64  # characters of what is quoted from the data
MOST_COLUMNS = 8  # names of unused columns that are listed
JOINED_PERCENT = "\x00%"  # a percent sign that stays with its number when lines are wrapped
LINE_NUMBER = re.compile(r":(\d+)(?: row (\d+))?")  # the rest of a row's place after the file's name
CONTAINERS = {"jsonl": "JSONL", "json": "JSON", "csv": "CSV", "parquet": "Parquet", "text": "plain text"}
LENGTH_KEYS = ("p50", "p90", "p95", "p99", "max")


def report_text(report: dict[str, Any]) -> str:
    """The whole report as text. No control character of the data reaches the terminal."""
    blocks = ["\n".join(_file_lines(file)) for file in report["files"]]
    blocks += ["\n".join(_held_out_lines(file)) for file in report["held_out"]]
    short_names = _short_file_names(report)
    if shared := list(_shared_prompts_lines(report, short_names)):
        blocks.append("\n".join(["Prompts in several files", *shared]))
    if report["advice"] or report["ok"]:
        blocks.append("\n".join(_advice_lines(report["advice"], short_names)))
    if not any(file["error"] is None and file["tokens"] for file in report["files"]):
        blocks.append("With --model NAME, lengths are also counted in tokens and compared with the limits.")
    return "\n\n".join(blocks)


def printable_text(value: str) -> str:
    """The text with escapes for all characters that a terminal could act on, or that hide other text."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in value)


def shortened(value: str, most_characters: int = MOST_DETAIL_CHARACTERS) -> str:
    """The beginning of a text from the data, printable, with "..." if it was longer."""
    beginning = printable_text(value[: most_characters + 1])
    return beginning if len(beginning) <= most_characters else beginning[: most_characters - 3] + "..."


def _file_lines(file: dict[str, Any]) -> Iterator[str]:
    """Yields the lines of one file's block."""
    yield _title_line(file)
    if file["error"] is not None:
        for number, line in enumerate(file["error"].splitlines()):
            yield from _entry_lines("" if number else "error", printable_text(line))
        return
    yield from _row_lines(file)
    for stage in file["stages"]:
        yield from _entry_lines(f"for {stage['stage']}", _stage_text(stage, file["rows"]))
    if file["records"]:
        yield from _entry_lines("prompts", _prompts_text(file))
        yield from _entry_lines("rankings", _rankings_text(file["rankings"]))
        yield from _entry_lines("steps", _steps_text(file["steps"]))
        yield from _entry_lines("repeated", _repeats_text(file["duplicates"]))
        yield from _entry_lines("not used", _unused_columns_text(file["signs"]))
        yield from _length_table(file)


def _title_line(file: dict[str, Any]) -> str:
    """The file's name, the kinds of its rows, their formats and the file's container."""
    kinds = " and ".join(file.get("kinds", {}))
    formats = ", ".join(file.get("formats", {}))
    containers = " and ".join(CONTAINERS[name] for name in file.get("containers", {}))
    description = f": {kinds}, format {formats}{f' in {containers}' if containers else ''}" if kinds else ""
    return printable_text(file["file"]) + description


def _entry_lines(label: str, value: str) -> list[str]:
    """A label and its text, wrapped; no line for an empty text."""
    return _wrapped_lines(value, f"  {label:<{LABEL_WIDTH}}", " " * (2 + LABEL_WIDTH))


def _wrapped_lines(value: str, first_indent: str, indent: str) -> list[str]:
    """The text wrapped to the width, with no line break between a number and its percent sign."""
    lines = textwrap.wrap(
        value.replace(" %", JOINED_PERCENT),
        LINE_WIDTH,
        initial_indent=first_indent,
        subsequent_indent=indent,
        break_on_hyphens=False,
    )
    return [line.replace(JOINED_PERCENT, " %") for line in lines]


def _row_lines(file: dict[str, Any]) -> Iterator[str]:
    """Yields how many rows were read, used and refused, and the reasons with the first places."""
    rows = file["rows"]
    records = f", {file['records']:,} records" if file["records"] != rows["used"] else ""
    break_note = "; then it breaks off, and how many rows are missing is not known" if rows["breaks"] else ""
    yield from _entry_lines(
        "rows", f"{rows['read']:,} read, {rows['used']:,} used, {rows['refused']:,} refused{records}{break_note}"
    )
    if file["skipped"]:
        names = ", ".join(printable_text(name) for name in file["skipped"][:MOST_PLACES])
        more = ", ..." if len(file["skipped"]) > MOST_PLACES else ""
        yield from _entry_lines("", f"no data: {pluralize(len(file['skipped']), 'file')} ({names}{more})")
    for entry_number, reason in enumerate(file["refused"][:MOST_REASONS]):
        yield from _entry_lines(
            "" if entry_number else "refused", f"{reason['count']:,}: {shortened(reason['reason'], LINE_WIDTH)}"
        )
        yield from _entry_lines("", "   " + _places_text(file["file"], reason))
    if len(file["refused"]) > MOST_REASONS:
        yield from _entry_lines("", f"and {pluralize(len(file['refused']) - MOST_REASONS, 'more reason')}")


def _places_text(file_name: str, reason: dict[str, Any]) -> str:
    """The places of the first refused rows with their details; a detail that all share is written once."""
    examples = reason["examples"][:MOST_PLACES]
    details = [f" ({shortened(example['detail'])})" if example["detail"] else "" for example in examples]
    places = [_place_text(file_name, example["place"]) for example in examples]
    more = ", ..." if reason["count"] > MOST_PLACES else ""
    if len(set(details)) == 1:
        return "; ".join(places) + more + details[0]
    return "; ".join(place + detail for place, detail in zip(places, details, strict=True)) + more


def _place_text(file_name: str, place: str) -> str:
    """A row's place without the file's name: "line 3, row 2"."""
    place = place.removeprefix(file_name).strip()
    if match := LINE_NUMBER.fullmatch(place):
        place = f"line {match[1]}" + (f", row {match[2]}" if match[2] else "")
    return printable_text(place)


def _prompts_text(file: dict[str, Any]) -> str:
    """How many prompts are different, their user turns, and how many have a system message."""
    if file["turns"] is None:
        return ""
    turns = file["turns"]
    turns_text = f"{turns['mean']:.1f} user turns, at most {turns['max']}" if turns["max"] > 1 else "single turn"
    system_text = f"; {share_text(turns['with_system'])} with a system message" if turns["with_system"] else ""
    about = "about " if file["duplicates"]["estimated"] else ""
    return f"{about}{file['duplicates']['distinct_prompts']:,} different; {turns_text}{system_text}"


def _steps_text(steps: dict[str, int] | None) -> str:
    """How many steps have which label."""
    if steps is None:
        return ""
    return f"{sum(steps.values()):,} in all: " + ", ".join(f"{count:,} {label}" for label, count in steps.items())


def _rankings_text(rankings: dict[str, Any] | None) -> str:
    """Pairs and ties, how often the longer response wins, and how far labelers agree; empty without rankings."""
    if rankings is None:
        return ""
    sizes = rankings["responses"]
    num_responses = next(iter(sizes)) if len(sizes) == 1 else f"{min(map(int, sizes))} to {max(map(int, sizes))}"
    pairs, ties = pluralize(rankings["pairs"], "pair"), rankings["ties"]
    parts = [
        f"{rankings['count']:,} of {num_responses} responses: {pairs}, {pluralize(ties, 'tie') if ties else 'no ties'}"
    ]
    if longer_wins := rankings["longer_wins"]:
        low, high = (f"{100 * longer_wins[end]:.1f}" for end in ("low", "high"))
        equal_note = (
            f"; as long as the other in {pluralize(longer_wins['equal'], 'pair')}, which count half"
            if longer_wins["equal"]
            else ""
        )
        parts.append(f"the longer response wins {share_text(longer_wins['rate'])} ({low} to {high}{equal_note})")
    if rankings["known_ends"]:
        parts.append(
            f"{rankings['cut']:,} of {pluralize(rankings['known_ends'], 'response')} did not end by themselves"
        )
    if rankings["labelers"]:
        parts.append(pluralize(rankings["labelers"], "labeler"))
    if agreement := rankings["agreement"]:
        # without names, a copied row cannot be told from a second labeler who agrees
        raters = "labelers" if rankings["labelers"] else "repeated rankings"
        parts.append(f"{raters} agree on {share_text(agreement['rate'])} of {pluralize(agreement['pairs'], 'pair')}")
    return "; ".join(parts)


def _repeats_text(duplicates: dict[str, Any]) -> str:
    """How many rows and prompts repeat others, or "nothing"."""
    descriptions = {
        "repeated_rows": "rows that copy an earlier one",
        "repeated_prompts": "rows that repeat a prompt",
        "begin_alike": "prompts that begin like a different one",
        "continued": "prompts that another continues",
    }
    about = "about " if duplicates["estimated"] else ""
    return (
        "; ".join(
            f"{description}: {about}{duplicates[name]:,}"
            for name, description in descriptions.items()
            if duplicates[name]
        )
        or "nothing"
    )


def _stage_text(stage: dict[str, Any], rows: dict[str, int]) -> str:
    """How many rows one stage uses; and its reasons for refused rows, if they are not those of the file."""
    if stage["error"] is not None:
        return printable_text(stage["error"].splitlines()[0])
    prefix = f"{stage['used']:,} of " if stage["refused"] else ""
    rows_text = _stage_rows_text(stage) if stage["used"] else ""
    parts = [f"{prefix}{pluralize(stage['used'] + stage['refused'], 'row')}{rows_text}"]
    if stage["refused"] != rows["refused"]:
        parts += [
            f"{count:,} refused: {shortened(reason.partition(';')[0], LINE_WIDTH)}"
            for reason, count in stage["reasons"].items()
        ]
    return "; ".join(parts)


def _stage_rows_text(stage: dict[str, Any]) -> str:
    """What the stage makes of the rows: prompts, records, the two sides of the split, rankings left out."""
    if stage["kind"] == "texts":
        return " of pretraining text"
    if stage["kind"] == "prompts":
        return f": {pluralize(stage['different'], 'different prompt')}"
    records_text = f", {stage['records']:,} {stage['kind']}" if stage["records"] != stage["used"] else ""
    tied_text = f", {stage['tied']:,} tied throughout and left out" if stage["tied"] else ""
    split = stage["split"]
    near_text = f", {split['begin_alike']:,} of these begin like a training prompt" if split["begin_alike"] else ""
    sides_text = f"{split['train']:,} train, {split['validation']:,} validation at fraction {split['fraction']:g}"
    return f"{records_text}: {sides_text}{near_text}{tied_text}"


def _unused_columns_text(signs: dict[str, Any]) -> str:
    """The names of the columns that no reader uses."""
    names = [shortened(name, 30) for name in signs["columns"]]
    if not names:
        return ""
    return (
        "columns "
        + ", ".join(names[:MOST_COLUMNS])
        + (f" and {len(names) - MOST_COLUMNS} more" if len(names) > MOST_COLUMNS else "")
    )


def _length_table(file: dict[str, Any]) -> Iterator[str]:
    """Yields the lines of the table of lengths, in characters and in tokens."""
    rows = []
    for unit in ("characters", "tokens"):
        for part in ("prompt", "response"):
            figures = file[unit][part] if file[unit] is not None else {"count": 0}
            if figures["count"]:
                name = "text" if list(file["kinds"]) == ["texts"] else part
                over_limit = (
                    _over_limit_text(file["tokens"]["limits"].get(f"max_{part}_tokens")) if unit == "tokens" else ""
                )
                rows.append([f"{name} {unit}", *(f"{figures[key]:,}" for key in LENGTH_KEYS), over_limit])
    if rows:
        header = ["length", "median", "90 %", "95 %", "99 %", "longest", "over limit" if file["tokens"] else ""]
        widths = (LABEL_WIDTH + 7, *(10 for _ in LENGTH_KEYS), 18)
        yield from (f"  {line}" for line in align_columns([header, *rows], "<" + ">" * (len(widths) - 1), widths))
    if file["tokens"] is not None and not file["tokens"]["exact"]:
        yield from _entry_lines("", f"tokens and limits: estimated from {file['tokens']['rows']:,} rows, evenly drawn")


def _over_limit_text(limit: dict[str, Any] | None) -> str:
    if limit is None:
        return ""
    return f"{share_text(limit['over']) if limit['over'] else 'none'} > {limit['limit']:,}"


def _held_out_lines(file: dict[str, Any]) -> Iterator[str]:
    """Yields the lines of a held-out file's block."""
    yield printable_text(file["file"]) + ": held out"
    if file["error"] is not None:
        yield from _entry_lines("error", printable_text(file["error"]))
        return
    yield from _row_lines(file)


def _shared_prompts_lines(report: dict[str, Any], names: dict[str, str]) -> Iterator[str]:
    """Yields how many held-out prompts are in other files, and how many prompts any two files share."""
    leaks = [row for row in report["leakage"] if row["exact"] or row["near"]]
    if report["leakage"] and not leaks:
        yield "  no held-out prompt stands in another file"
    for row in leaks:
        held_out = f"{row['exact']:,} of {pluralize(row['prompts'], 'held-out prompt')} of {names[row['held_out']]}"
        yield from _wrapped_lines(f"{names[row['file']]} holds {held_out}{_near_text(row)}", "  ", "    ")
    for row in report["overlap"]:
        if row["exact"] or row["near"]:
            prompts = f"{pluralize(row['exact'], 'prompt')} of {names[row['file']]}{_near_text(row)}"
            yield from _wrapped_lines(f"{names[row['other']]} holds {prompts}", "  ", "    ")


def _near_text(row: dict[str, Any]) -> str:
    return f", and {row['near']:,} more nearly (begun alike, or continued)" if row["near"] else ""


def _advice_lines(advice: Sequence[dict[str, str]], names: dict[str, str]) -> Iterator[str]:
    """Yields the advice under the names of the files."""
    if not advice:
        yield "Nothing to mend."
        return
    yield "To mend"
    previous_file = None
    for item in advice:
        if item["file"] != previous_file:
            yield from _wrapped_lines(names[item["file"]], "  ", "    ")
        yield from _wrapped_lines(printable_text(item["text"]), "  - ", "    ")
        previous_file = item["file"]


def _short_file_names(report: dict[str, Any]) -> dict[str, str]:
    """{file name: the name without its folders, if no other file has the same}."""
    names = {file["file"] for file in (*report["files"], *report["held_out"])}
    last_part_counts = Counter(PurePath(name).name for name in names)
    return {
        name: printable_text(PurePath(name).name if last_part_counts[PurePath(name).name] == 1 else name)
        for name in names
    }
