"""A report of `data check` as text for a terminal: a block per file, what files share, and what to mend."""

import re
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import Any

from lora_rlhf.inspection.advice import share

WIDTH = 100
LABEL = 13  # characters of the column of labels
REASONS = 8  # of refused rows
PLACES = 3  # of refused rows per reason
DETAIL = 64  # characters of what is quoted from the data
COLUMNS = 8  # names of unused columns that are listed
JOINED = "\x00%"  # a percent sign that stays with its number when lines are wrapped
LINE = re.compile(r":(\d+)(?: row (\d+))?")  # what is left of a place without the file's name
CONTAINERS = {"jsonl": "JSONL", "json": "JSON", "csv": "CSV", "parquet": "Parquet", "text": "plain text"}
LENGTHS = ("p50", "p90", "p95", "p99", "max")


def text(report: dict[str, Any]) -> str:
    """The whole report. Nothing in it reaches the terminal as a control character."""
    blocks = ["\n".join(_file(file)) for file in report["files"]]
    blocks += ["\n".join(_held_out(file)) for file in report["held_out"]]
    names = _short_names(report)
    if shared := list(_shared(report, names)):
        blocks.append("\n".join(["Prompts in several files", *shared]))
    if report["advice"] or report["ok"]:
        blocks.append("\n".join(_advice(report["advice"], names)))
    if not any(file["error"] is None and file["tokens"] for file in report["files"]):
        blocks.append("With --model NAME, lengths are also counted in tokens and compared with the limits.")
    return "\n\n".join(blocks)


def printable(value: str) -> str:
    """The text with everything that a terminal could act on, or that hides other text, spelled as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in value)


def short(value: str, most: int = DETAIL) -> str:
    """The beginning of a text from the data, printable."""
    shown = printable(value[: most + 1])
    return shown if len(shown) <= most else shown[: most - 3] + "..."


def _file(file: dict[str, Any]) -> Iterator[str]:
    yield _title(file)
    if file["error"] is not None:
        for number, line in enumerate(file["error"].splitlines()):
            yield from _entry("" if number else "error", printable(line))
        return
    yield from _rows(file)
    if file["records"]:
        yield from _entry("prompts", _prompts(file))
        yield from _entry("rankings", _rankings(file["rankings"]))
        yield from _entry("repeated", _repeated(file["duplicates"]))
        yield from _entry("split", _split(file["split"]))
        yield from _entry("not used", _unused(file["signs"]))
        yield from _lengths(file)


def _title(file: dict[str, Any]) -> str:
    kinds = " and ".join(file.get("kinds", {}))
    formats = ", ".join(file.get("formats", {}))
    held = " and ".join(CONTAINERS[name] for name in file.get("containers", {}))
    return printable(file["file"]) + (f": {kinds}, format {formats}{f' in {held}' if held else ''}" if kinds else "")


def _entry(label: str, value: str) -> list[str]:
    """A label and what it says, over as many lines as that takes; nothing for an empty value."""
    return _wrap(value, f"  {label:<{LABEL}}", " " * (2 + LABEL))


def _wrap(value: str, first: str, others: str) -> list[str]:
    lines = textwrap.wrap(
        value.replace(" %", JOINED), WIDTH, initial_indent=first, subsequent_indent=others, break_on_hyphens=False
    )
    return [line.replace(JOINED, " %") for line in lines]


def _rows(file: dict[str, Any]) -> Iterator[str]:
    rows = file["rows"]
    made = f", {file['records']:,} records" if file["records"] != rows["used"] else ""
    yield from _entry("rows", f"{rows['read']:,} read, {rows['used']:,} used, {rows['refused']:,} refused{made}")
    if file["skipped"]:
        names = ", ".join(printable(name) for name in file["skipped"][:PLACES])
        more = ", ..." if len(file["skipped"]) > PLACES else ""
        yield from _entry("", f"{len(file['skipped'])} files are no data: {names}{more}")
    for number, reason in enumerate(file["refused"][:REASONS]):
        yield from _entry("" if number else "refused", f"{reason['count']:,}: {short(reason['reason'], WIDTH)}")
        shown = [_place(file["file"], example) for example in reason["examples"][:PLACES]]
        more = ", ..." if reason["count"] > PLACES else ""
        yield from _entry("", "   " + "; ".join(shown) + more)
    if len(file["refused"]) > REASONS:
        yield from _entry("", f"and {len(file['refused']) - REASONS} more reasons")


def _place(name: str, example: dict[str, str]) -> str:
    place = example["place"].removeprefix(name).strip()
    if found := LINE.fullmatch(place):
        place = f"line {found[1]}" + (f", row {found[2]}" if found[2] else "")
    return printable(place) + (f" ({short(example['detail'])})" if example["detail"] else "")


def _prompts(file: dict[str, Any]) -> str:
    if file["turns"] is None:
        return ""
    turns = file["turns"]
    spoken = f"{turns['mean']:.1f} user turns, at most {turns['max']}" if turns["max"] > 1 else "single turn"
    system = f"; {share(turns['with_system'])} with a system message" if turns["with_system"] else ""
    about = "about " if file["duplicates"]["estimated"] else ""
    return f"{about}{file['duplicates']['distinct_prompts']:,} different; {spoken}{system}"


def _rankings(rankings: dict[str, Any] | None) -> str:
    if rankings is None:
        return ""
    sizes = rankings["responses"]
    span = next(iter(sizes)) if len(sizes) == 1 else f"{min(map(int, sizes))} to {max(map(int, sizes))}"
    pairs, ties = rankings["pairs"], rankings["ties"]
    parts = [f"{rankings['count']:,} of {span} responses: {pairs:,} pairs, {f'{ties:,}' if ties else 'no'} ties"]
    if longer := rankings["longer_wins"]:
        low, high = (f"{100 * longer[end]:.1f}" for end in ("low", "high"))
        parts.append(f"the longer response wins {share(longer['rate'])} ({low} to {high})")
    if rankings["labelers"]:
        parts.append(f"{rankings['labelers']:,} labelers")
    if agreed := rankings["agreement"]:
        # without names, a copied row cannot be told from a second labeler who agrees
        who = "labelers" if rankings["labelers"] else "repeated rankings"
        parts.append(f"{who} agree on {share(agreed['rate'])} of {agreed['pairs']:,} pairs")
    return "; ".join(parts)


def _repeated(counted: dict[str, Any]) -> str:
    named = {
        "repeated_rows": "rows copy an earlier one",
        "repeated_prompts": "rows repeat a prompt",
        "begin_alike": "prompts begin like a different one",
        "continued": "prompts are continued by another",
    }
    parts = [f"{counted[name]:,} {what}" for name, what in named.items() if counted[name]]
    return ("about " if counted["estimated"] else "") + "; ".join(parts) if parts else "nothing"


def _split(split: dict[str, Any] | None) -> str:
    if split is None:
        return ""
    near = f"; {split['begin_alike']:,} of these begin like a training prompt" if split["begin_alike"] else ""
    return f"{split['train']:,} train, {split['validation']:,} validation at fraction {split['fraction']:g}{near}"


def _unused(signs: dict[str, Any]) -> str:
    names = [short(name, 30) for name in signs["columns"]]
    if not names:
        return ""
    return (
        "columns " + ", ".join(names[:COLUMNS]) + (f" and {len(names) - COLUMNS} more" if len(names) > COLUMNS else "")
    )


def _lengths(file: dict[str, Any]) -> Iterator[str]:
    rows = []
    for unit in ("characters", "tokens"):
        for what in ("prompt", "response"):
            figures = file[unit][what] if file[unit] is not None else {"count": 0}
            if figures["count"]:
                name = "text" if list(file["kinds"]) == ["texts"] else what
                over = _over(file["tokens"]["limits"].get(f"max_{what}_tokens")) if unit == "tokens" else ""
                rows.append([f"{name} {unit}", *(f"{figures[key]:,}" for key in LENGTHS), over])
    if rows:
        header = ["length", "median", "90 %", "95 %", "99 %", "longest", "over limit" if file["tokens"] else ""]
        for name, *values in [header, *rows]:
            *numbers, over = values
            yield f"  {name:<{LABEL + 7}}{''.join(f'{number:>10}' for number in numbers)}{over:>18}".rstrip()
    if file["tokens"] is not None and not file["tokens"]["exact"]:
        yield from _entry("", f"tokens and limits: estimated from {file['tokens']['rows']:,} rows, evenly drawn")


def _over(limit: dict[str, Any] | None) -> str:
    if limit is None:
        return ""
    return f"{share(limit['over']) if limit['over'] else 'none'} > {limit['limit']:,}"


def _held_out(file: dict[str, Any]) -> Iterator[str]:
    yield printable(file["file"]) + ": held out"
    if file["error"] is not None:
        yield from _entry("error", printable(file["error"]))
        return
    yield from _rows(file)


def _shared(report: dict[str, Any], names: dict[str, str]) -> Iterator[str]:
    leaks = [row for row in report["leakage"] if row["exact"] or row["near"]]
    if report["leakage"] and not leaks:
        yield "  no held-out prompt stands in another file"
    for row in leaks:
        near = f"; {row['near']:,} more begin like one there or continue one" if row["near"] else ""
        held_out = f"{row['exact']:,} of {row['prompts']:,} held-out prompts of {names[row['held_out']]}"
        yield from _wrap(f"{held_out} stand in {names[row['file']]}{near}", "  ", "    ")
    for row in report["overlap"]:
        if row["exact"] or row["near"]:
            near = f", {row['near']:,} more nearly" if row["near"] else ""
            told = f"{row['exact']:,} prompts of {names[row['file']]} stand in {names[row['other']]}{near}"
            yield from _wrap(told, "  ", "    ")


def _advice(pieces: Sequence[dict[str, str]], names: dict[str, str]) -> Iterator[str]:
    if not pieces:
        yield "Nothing to mend."
        return
    yield "To mend"
    before = None
    for piece in pieces:
        if piece["file"] != before:
            yield from _wrap(names[piece["file"]], "  ", "    ")
        yield from _wrap(printable(piece["text"]), "  - ", "    ")
        before = piece["file"]


def _short_names(report: dict[str, Any]) -> dict[str, str]:
    """The files' last parts where these are enough to tell them apart."""
    names = {file["file"] for file in (*report["files"], *report["held_out"])}
    last = Counter(PurePath(name).name for name in names)
    return {name: printable(PurePath(name).name if last[PurePath(name).name] == 1 else name) for name in names}
