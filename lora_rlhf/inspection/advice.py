"""What to do about a report: each piece with the figure that it rests on; silence where all is well."""

from collections.abc import Iterator
from typing import Any

from lora_rlhf.data.refusals import counted
from lora_rlhf.render.wording import share

Report = dict[str, Any]

FEW_PAIRS = 2000  # below it, reward models were close to chance (Gao et al., arXiv 2210.10760)
LOW_AGREEMENT = 0.65  # people agree with one another on 66 % (AlpacaFarm, 2305.14387) to 77 % (InstructGPT, 2203.02155)
ENOUGH_COMPARED = 100  # pairs: with fewer, agreement is known to 10 points at best
LONGER_WINS = 0.6  # "the longer one" is right on 55.7, 59.6 and 63.1 % of three sets (Singhal et al., 2310.03716)
CUT = 0.01  # share of rows that a limit, a refusal or a copy may cost without a word; our choice, as the next two are
NARROW = 0.3  # share of rows whose prompts begin alike, or continue one another
CHECKABLE = 0.5  # share of rows whose answers code could check
EMPTY = 0.5  # share of rows in which a known column is empty
TIED = 0.1  # share of rankings that are tied throughout

ANSWERS = "answer answers solution solutions final_answer ground_truth gold gold_answer reference_answer target".split()
TESTS = "test tests test_cases test_list unit_tests reward_model verification_info".split()
MEANINGFUL = (
    "system system_prompt history context input tools images image reasoning thinking rank ranks score scores rating "
    "ratings margin label labels labeler annotator worker weight"
).split()


def advice(report: Report) -> list[dict[str, str]]:
    """What a person should know before training on this data; empty when there is nothing to mend.

    `report` is as of `check.check_data`. Each piece is {"file", "text"}, a file's pieces together, its gravest first.
    """
    pieces = list(_leakage(report))
    for file in report["files"]:
        if file["error"] is None and file["records"]:
            for rules in (_refusals, _template, _limits, _rankings, _repeats, _split, _empty, _columns):
                pieces += [{"file": file["file"], "text": sentence} for sentence in rules(file)]
    return pieces


def _leakage(report: Report) -> Iterator[dict[str, str]]:
    for row in report["leakage"]:
        if row["exact"] or row["near"] > CUT * row["prompts"]:
            also = f", and {row['near']:,} more nearly (begun alike, or continued)" if row["near"] else ""
            yield {
                "file": row["held_out"],
                "text": f"{row['file']} holds {row['exact']:,} of its {counted(row['prompts'], 'prompt')} "
                f"({share(row['exact'] / row['prompts'])}) too{also}. Figures on held-out data would flatter the "
                "model: take these prompts out of one of the two.",
            }


def _refusals(file: Report) -> Iterator[str]:
    rows = file["rows"]
    if rows["refused"] > CUT * rows["read"]:
        yield (
            f"{rows['refused']:,} of {rows['read']:,} rows ({share(rows['refused'] / rows['read'])}) cannot be used, "
            f"most often because: {file['refused'][0]['reason']}. --refused FILE lists every one."
        )
    if len(file["formats"]) > 1:
        listed = ", ".join(f"{count:,} as {name}" for name, count in file["formats"].items())
        yield f"rows are written in {len(file['formats'])} ways: {listed}. If that is not meant, give --format."


def _template(file: Report) -> Iterator[str]:
    signs, tokens = file["signs"], file["tokens"]
    if signs["markup"] > CUT:
        yield (
            f"{share(signs['markup'], signs['exact'])} of rows hold the markup of a chat template or prompt recipe "
            '(such as <|im_start|>, [INST] or "### Response:"). Training writes the model\'s own template around it, '
            "so it would stand there twice: give plain text or messages."
        )
    if signs["placeholders"] > CUT:
        yield (
            f"{share(signs['placeholders'], signs['exact'])} of rows hold a placeholder such as {{{{name}}}}, which "
            "a model would learn to write: put in what it stands for."
        )
    for reason, part in (tokens or {"refused": {}})["refused"].items():
        yield f"{share(part, tokens['exact'])} of rows are refused with this model: {reason}."


def _limits(file: Report) -> Iterator[str]:
    tokens = file["tokens"]
    for name, row in ({} if tokens is None else tokens["limits"]).items():
        if row["over"] <= CUT:
            continue
        flag, over = f"--{name.replace('_', '-')}", share(row["over"], tokens["exact"])
        if name == "max_prompt_tokens":
            yield (
                f"{over} of prompts are longer than {flag} {row['limit']} and lose their beginning. "
                f"{flag} {row['keeps_99']} keeps 99 % whole, {row['keeps_95']} keeps 95 %."
            )
        else:
            yield (
                f"{over} of responses are longer than {flag} {row['limit']} and are left out, which costs "
                f"{share(row['lost'], tokens['exact'])} of rows. {flag} {row['keeps_99']} keeps 99 % of responses, "
                f"{row['keeps_95']} keeps 95 %; --long-responses cut keeps their beginning."
            )


def _rankings(file: Report) -> Iterator[str]:
    rankings = file["rankings"]
    if rankings is None:
        return
    if rankings["all_tied"] >= TIED * rankings["count"]:
        yield (
            f"a tie throughout, which teaches nothing: {rankings['all_tied']:,} of "
            f"{counted(rankings['count'], 'ranking')} ({share(rankings['all_tied'] / rankings['count'])})."
        )
    if rankings["pairs"] < FEW_PAIRS:
        yield (
            f"{counted(rankings['pairs'], 'pair')} to learn from. Below about {FEW_PAIRS:,}, reward models were close "
            "to chance (arXiv 2210.10760): collect more."
        )
    longer = rankings["longer_wins"]
    if longer is not None and longer["rate"] > LONGER_WINS and longer["low"] > 0.5:
        yield (
            f"the longer response wins {share(longer['rate'])} of pairs ({share(longer['low'])} to "
            f'{share(longer["high"])}), so "longer is better" is right that often without reading, and the reward '
            "will learn it (arXiv 2310.03716). Add pairs that a shorter response wins, and watch the length in PPO."
        )
    agreed = rankings["agreement"]
    if agreed is not None and agreed["rate"] < LOW_AGREEMENT and agreed["pairs"] >= ENOUGH_COMPARED:
        yield (
            f"labelers agree on only {share(agreed['rate'])} of {counted(agreed['pairs'], 'pair')} (InstructGPT's: "
            "72.6 %), and a reward model can hardly agree with them more often. Clearer instructions help, or several "
            "labels a pair."
        )
    if rankings["labelers"] == 1:
        yield (
            f"1 labeler made all rankings ({rankings['count']:,}), so how far people agree cannot be known: let a "
            "second one rank some of the same."
        )


def _repeats(file: Report) -> Iterator[str]:
    seen = file["duplicates"]
    rows, exact = seen["rows"], not seen["estimated"]
    if seen["repeated_rows"] > CUT * rows:
        yield (
            f"{share(seen['repeated_rows'] / rows, exact)} of rows only repeat an earlier one exactly: of "
            f"{rows:,} rows, {'' if exact else 'about '}{rows - seen['repeated_rows']:,} are different. Training "
            "counts a row as often as it stands there: leave the repeats out unless that is meant."
        )
    for name, what in [
        ("begin_alike", "begin like a different prompt (128 characters)"),
        ("continued", "are continued by another"),
    ]:
        if seen[name] >= NARROW * rows:
            yield (
                f"{share(seen[name] / rows, exact)} of prompts ({seen[name]:,}) {what}: the data are narrower "
                f"than their {rows:,} rows suggest; sample and ppo leave such prompts out with --deduplicate prefix."
            )


def _split(file: Report) -> Iterator[str]:
    for stage in file["stages"]:
        if stage["error"] is None and stage["split"] is not None:
            yield from _sides(stage["stage"], stage["split"])


def _sides(stage: str, split: dict[str, Any]) -> Iterator[str]:
    fraction, rows = split["fraction"], split["train"] + split["validation"]
    if rows and fraction and not (split["train"] and split["validation"]):
        missing = "validation" if split["train"] else "training"
        if split["enough"] is None:
            way_out = "there are too few to divide: --validation-fraction 0 trains on all of them, unmeasured"
        else:
            way_out = f"--validation-fraction {split['enough']:g} gives some, and 0 trains on all of them, unmeasured"
        yield (
            f"{stage} would stop: of {counted(rows, 'row')}, --validation-fraction {fraction:g} leaves none for "
            f"{missing}; {way_out}."
        )
    if split["begin_alike"] > NARROW * split["validation"]:
        yield (
            f"for {stage}, a different training prompt begins like {split['begin_alike']:,} of "
            f"{counted(split['validation'], 'validation prompt')}, so validation figures will look better than on new "
            "prompts."
        )


def _empty(file: Report) -> Iterator[str]:
    """A column that is there but never filled, where the rows are then less than they could be."""
    signs = file["signs"]
    for name, missing in signs["empty"].items():
        if missing >= EMPTY and set(file["kinds"]) <= {"prompts", "texts"}:
            yield (
                f"column {name!r} is there but empty in {share(missing, signs['exact'])} of rows, so they are read as "
                f"{' and '.join(file['kinds'])}."
            )


def _columns(file: Report) -> Iterator[str]:
    signs, formats = file["signs"], " and ".join(file["formats"])
    exact, columns = signs["exact"], signs["columns"]
    checkable = [name for name in columns if name.lower() in (*ANSWERS, *TESTS) and columns[name] >= CHECKABLE]
    reason = ""
    if checkable:
        reason = f"{share(columns[checkable[0]], exact)} of rows bring {checkable[0]!r}"
    elif signs["ends_in_number"] >= CHECKABLE:
        reason = f"{share(signs['ends_in_number'], exact)} of answers end in a number"
    if reason:
        yield (
            f"{reason}, which code can check: such a reward (ppo --reward-function) needs no labels and is harder to "
            "fool."
        )
    if "responses" in columns and list(file["kinds"]) == ["prompts"]:
        yield "there are responses without ranks: add ranks to each row, 1 for the best, and the rows are rankings."
    for name in columns:
        if name.lower() in MEANINGFUL and columns[name] > CUT:
            yield (
                f"column {name!r} is filled in {share(columns[name], exact)} of rows, but {formats} does not use it: "
                "the model will not see it, and nothing is learned from it."
            )
