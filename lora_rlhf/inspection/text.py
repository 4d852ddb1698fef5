"""A report of `data check` as text for a terminal: a block per file, what files share, and what to mend."""

import re
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import Any

from lora_rlhf.data.refusals import counted
from lora_rlhf.render.tables import columns
from lora_rlhf.render.wording import share

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
    beginning = printable(value[: most + 1])
    return beginning if len(beginning) <= most else beginning[: most - 3] + "..."


def _file(file: dict[str, Any]) -> Iterator[str]:
    yield _title(file)
    if file["error"] is not None:
        for number, line in enumerate(file["error"].splitlines()):
            yield from _entry("" if number else "error", printable(line))
        return
    yield from _rows(file)
    for stage in file["stages"]:
        yield from _entry(f"for {stage['stage']}", _stage(stage, file["rows"]))
    if file["records"]:
        yield from _entry("prompts", _prompts(file))
        yield from _entry("rankings", _rankings(file["rankings"]))
        yield from _entry("repeated", _repeated(file["duplicates"]))
        yield from _entry("not used", _unused(file["signs"]))
        yield from _lengths(file)


def _title(file: dict[str, Any]) -> str:
    kinds = " and ".join(file.get("kinds", {}))
    formats = ", ".join(file.get("formats", {}))
    containers = " and ".join(CONTAINERS[name] for name in file.get("containers", {}))
    described = f": {kinds}, format {formats}{f' in {containers}' if containers else ''}" if kinds else ""
    return printable(file["file"]) + described


def _entry(label: str, value: str) -> list[str]:
    """A label and what it says, over as many lines as that takes; nothing for an empty value."""
    return _wrap(value, f"  {label:<{LABEL}}", " " * (2 + LABEL))


def _wrap(value: str, first_indent: str, indent: str) -> list[str]:
    lines = textwrap.wrap(
        value.replace(" %", JOINED),
        WIDTH,
        initial_indent=first_indent,
        subsequent_indent=indent,
        break_on_hyphens=False,
    )
    return [line.replace(JOINED, " %") for line in lines]


def _rows(file: dict[str, Any]) -> Iterator[str]:
    rows = file["rows"]
    records = f", {file['records']:,} records" if file["records"] != rows["used"] else ""
    rest = "; then it breaks off, and how many rows are missing is not known" if rows["breaks"] else ""
    yield from _entry(
        "rows", f"{rows['read']:,} read, {rows['used']:,} used, {rows['refused']:,} refused{records}{rest}"
    )
    if file["skipped"]:
        names = ", ".join(printable(name) for name in file["skipped"][:PLACES])
        more = ", ..." if len(file["skipped"]) > PLACES else ""
        yield from _entry("", f"no data: {counted(len(file['skipped']), 'file')} ({names}{more})")
    for number, reason in enumerate(file["refused"][:REASONS]):
        yield from _entry("" if number else "refused", f"{reason['count']:,}: {short(reason['reason'], WIDTH)}")
        yield from _entry("", "   " + _places(file["file"], reason))
    if len(file["refused"]) > REASONS:
        yield from _entry("", f"and {counted(len(file['refused']) - REASONS, 'more reason')}")


def _places(name: str, reason: dict[str, Any]) -> str:
    """The first places, with what is wrong at each; once where that is the same."""
    examples = reason["examples"][:PLACES]
    details = [f" ({short(example['detail'])})" if example["detail"] else "" for example in examples]
    places = [_place(name, example["place"]) for example in examples]
    more = ", ..." if reason["count"] > PLACES else ""
    if len(set(details)) == 1:
        return "; ".join(places) + more + details[0]
    return "; ".join(place + detail for place, detail in zip(places, details, strict=True)) + more


def _place(name: str, place: str) -> str:
    place = place.removeprefix(name).strip()
    if match := LINE.fullmatch(place):
        place = f"line {match[1]}" + (f", row {match[2]}" if match[2] else "")
    return printable(place)


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
    pairs, ties = counted(rankings["pairs"], "pair"), rankings["ties"]
    parts = [f"{rankings['count']:,} of {span} responses: {pairs}, {counted(ties, 'tie') if ties else 'no ties'}"]
    if longer := rankings["longer_wins"]:
        low, high = (f"{100 * longer[end]:.1f}" for end in ("low", "high"))
        half = (
            f"; as long as the other in {counted(longer['equal'], 'pair')}, which count half" if longer["equal"] else ""
        )
        parts.append(f"the longer response wins {share(longer['rate'])} ({low} to {high}{half})")
    if rankings["labelers"]:
        parts.append(counted(rankings["labelers"], "labeler"))
    if agreed := rankings["agreement"]:
        # without names, a copied row cannot be told from a second labeler who agrees
        who = "labelers" if rankings["labelers"] else "repeated rankings"
        parts.append(f"{who} agree on {share(agreed['rate'])} of {counted(agreed['pairs'], 'pair')}")
    return "; ".join(parts)


def _repeated(seen: dict[str, Any]) -> str:
    named = {
        "repeated_rows": "rows that copy an earlier one",
        "repeated_prompts": "rows that repeat a prompt",
        "begin_alike": "prompts that begin like a different one",
        "continued": "prompts that another continues",
    }
    about = "about " if seen["estimated"] else ""
    return "; ".join(f"{what}: {about}{seen[name]:,}" for name, what in named.items() if seen[name]) or "nothing"


def _stage(stage: dict[str, Any], rows: dict[str, int]) -> str:
    """What one stage uses of the file; why it refuses rows, where these are not the file's refused ones."""
    if stage["error"] is not None:
        return printable(stage["error"].splitlines()[0])
    of = f"{stage['used']:,} of " if stage["refused"] else ""
    parts = [f"{of}{counted(stage['used'] + stage['refused'], 'row')}{_parts(stage) if stage['used'] else ''}"]
    if stage["refused"] != rows["refused"]:
        parts += [
            f"{count:,} refused: {short(reason.partition(';')[0], WIDTH)}" for reason, count in stage["reasons"].items()
        ]
    return "; ".join(parts)


def _parts(stage: dict[str, Any]) -> str:
    if stage["kind"] == "texts":
        return " of pretraining text"
    if stage["kind"] == "prompts":
        return f": {counted(stage['different'], 'different prompt')}"
    records = f", {stage['records']:,} {stage['kind']}" if stage["records"] != stage["used"] else ""
    tied = f", {stage['tied']:,} tied throughout and left out" if stage["tied"] else ""
    split = stage["split"]
    near = f", {split['begin_alike']:,} of these begin like a training prompt" if split["begin_alike"] else ""
    sides = f"{split['train']:,} train, {split['validation']:,} validation at fraction {split['fraction']:g}"
    return f"{records}: {sides}{near}{tied}"


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
        widths = (LABEL + 7, *(10 for _ in LENGTHS), 18)
        yield from (f"  {line}" for line in columns([header, *rows], "<" + ">" * (len(widths) - 1), widths))
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
        held_out = f"{row['exact']:,} of {counted(row['prompts'], 'held-out prompt')} of {names[row['held_out']]}"
        yield from _wrap(f"{names[row['file']]} holds {held_out}{_near(row)}", "  ", "    ")
    for row in report["overlap"]:
        if row["exact"] or row["near"]:
            line = f"{names[row['other']]} holds {counted(row['exact'], 'prompt')} of {names[row['file']]}{_near(row)}"
            yield from _wrap(line, "  ", "    ")


def _near(row: dict[str, Any]) -> str:
    return f", and {row['near']:,} more nearly (begun alike, or continued)" if row["near"] else ""


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
