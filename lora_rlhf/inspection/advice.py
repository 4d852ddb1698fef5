"""Advice on a report of `data check`: each sentence names the figure that it rests on. No advice if all is well."""

from collections.abc import Iterator
from typing import Any

from lora_rlhf.configs.catalogue import DPO
from lora_rlhf.data.records import UNPAIRED
from lora_rlhf.data.refusals import pluralize
from lora_rlhf.render.wording import share_text

Report = dict[str, Any]

FEW_PAIRS = 2000  # below it, reward models were close to chance (Gao et al., arXiv 2210.10760)
LOW_AGREEMENT = 0.65  # people agree with one another on 66 % (AlpacaFarm, 2305.14387) to 77 % (InstructGPT, 2203.02155)
ENOUGH_COMPARED = 100  # pairs: with fewer, agreement is known to 10 points at best
LONGER_WINS = 0.6  # "the longer one" is right on 55.7, 59.6 and 63.1 % of three sets (Singhal et al., 2310.03716)
NEGLIGIBLE_SHARE = (
    0.01  # share of rows that a limit, a refusal or a copy may cost without advice; our choice, as all below are
)
NARROW_SHARE = 0.3  # share of rows whose prompts begin alike, or continue one another
CHECKABLE_SHARE = 0.5  # share of rows whose answers code could check
EMPTY_SHARE = 0.5  # share of rows in which a known column is empty
TIED_SHARE = 0.1  # share of rankings that are tied throughout
CUT_SHARE = 0.1  # of responses that did not end

ANSWER_COLUMNS = (
    "answer answers solution solutions final_answer ground_truth gold gold_answer reference_answer target".split()
)
TEST_COLUMNS = "test tests test_cases test_list unit_tests reward_model verification_info".split()
MEANINGFUL_COLUMNS = (
    "system system_prompt history context input tools images image reasoning thinking rank ranks score scores rating "
    "ratings margin label labels labeler annotator worker weight"
).split()


def advice_on_report(report: Report) -> list[dict[str, str]]:
    """Returns advice for training on this data; empty if nothing needs a change.

    `report` is the one of `check.check_data`. Each item is {"file", "text"}: all items of a file follow one another,
    the most serious first.
    """
    pieces = list(_leakage_advice(report))
    for file in report["files"]:
        if file["error"] is None:
            for rules in (_refused_rows_advice, *(RULES_OF_RECORDS if file["records"] else ())):
                pieces += [{"file": file["file"], "text": sentence} for sentence in rules(file)]
    return pieces


def _leakage_advice(report: Report) -> Iterator[dict[str, str]]:
    """Yields one item for each held-out file whose prompts are in a training file too."""
    for row in report["leakage"]:
        if row["exact"] or row["near"] > NEGLIGIBLE_SHARE * row["prompts"]:
            near_copies = f", and {row['near']:,} more nearly (begun alike, or continued)" if row["near"] else ""
            yield {
                "file": row["held_out"],
                "text": f"{row['file']} holds {row['exact']:,} of its {pluralize(row['prompts'], 'prompt')} "
                f"({share_text(row['exact'] / row['prompts'])}) too{near_copies}. Figures on held-out data would "
                "flatter the model: take these prompts out of one of the two.",
            }


def _refused_rows_advice(file: Report) -> Iterator[str]:
    """Yields advice if many rows are refused, or if the rows are written in several formats."""
    rows = file["rows"]
    if rows["refused"] > NEGLIGIBLE_SHARE * rows["read"]:
        yield (
            f"{rows['refused']:,} of {rows['read']:,} rows ({share_text(rows['refused'] / rows['read'])}) cannot be "
            f"used, most often because: {file['refused'][0]['reason']}. --refused FILE lists every one."
        )
    if len(file["formats"]) > 1:
        formats = ", ".join(f"{count:,} as {name}" for name, count in file["formats"].items())
        yield f"rows are written in {len(file['formats'])} ways: {formats}. If that is not meant, give --format."


def _template_advice(file: Report) -> Iterator[str]:
    """Yields advice if rows contain a template's markup, or if the model's template refuses rows."""
    signs, tokens = file["signs"], file["tokens"]
    if signs["markup"] > NEGLIGIBLE_SHARE:
        yield (
            f"{share_text(signs['markup'], signs['exact'])} of rows hold the markup of a chat template or prompt "
            "recipe "
            '(such as <|im_start|>, [INST] or "### Response:"). Training writes the model\'s own template around it, '
            "so it would stand there twice: give plain text or messages."
        )
    if signs["placeholders"] > NEGLIGIBLE_SHARE:
        yield (
            f"{share_text(signs['placeholders'], signs['exact'])} of rows hold a placeholder such as {{{{name}}}}, "
            "which a model would learn to write: put in what it stands for."
        )
    for reason, refused_share in (tokens or {"refused": {}})["refused"].items():
        yield f"{share_text(refused_share, tokens['exact'])} of rows are refused with this model: {reason}."


def _length_limit_advice(file_report: Report) -> Iterator[str]:
    """Yields advice for each length limit that cuts or leaves out more than a negligible share of rows."""
    tokens = file_report["tokens"]
    for name, limit in ({} if tokens is None else tokens["limits"]).items():
        if limit["over"] <= NEGLIGIBLE_SHARE:
            continue
        flag, share_over = f"--{name.replace('_', '-')}", share_text(limit["over"], tokens["exact"])
        if name == "max_prompt_tokens":
            yield (
                f"{share_over} of prompts are longer than {flag} {limit['limit']} and lose their beginning. "
                f"{flag} {limit['keeps_99']} keeps 99 % whole, {limit['keeps_95']} keeps 95 %."
            )
        else:
            yield (
                f"{share_over} of responses are longer than {flag} {limit['limit']} and are left out, which costs "
                f"{share_text(limit['lost'], tokens['exact'])} of rows. {flag} {limit['keeps_99']} keeps 99 % of "
                f"responses, {limit['keeps_95']} keeps 95 %; --long-responses cut keeps their beginning."
            )


def _vote_advice(file: Report) -> Iterator[str]:
    """Yields advice if answers are called good or bad one by one."""
    if UNPAIRED.name in file["formats"]:
        yield (
            "answers are called good or bad one by one. A reward model compares two answers to one prompt; "
            f"`lora-rlhf {DPO.name} --method kto` learns from each of them alone (docs/methods.md)."
        )


def _ranking_advice(file: Report) -> Iterator[str]:
    """Yields advice on ties, few pairs, a preference for long responses, and disagreement of labelers."""
    rankings = file["rankings"]
    if rankings is None:
        return
    if rankings["all_tied"] >= TIED_SHARE * rankings["count"]:
        yield (
            f"a tie throughout, which teaches nothing: {rankings['all_tied']:,} of "
            f"{pluralize(rankings['count'], 'ranking')} ({share_text(rankings['all_tied'] / rankings['count'])})."
        )
    if rankings["pairs"] < FEW_PAIRS:
        yield (
            f"{pluralize(rankings['pairs'], 'pair')} to learn from. Below about {FEW_PAIRS:,}, reward models were "
            f"close to chance (arXiv 2210.10760): collect more, and compare with `lora-rlhf {DPO.name}`, which learns "
            "from pairs without a reward model (docs/methods.md)."
        )
    if rankings["cut"] > CUT_SHARE * rankings["known_ends"]:
        yield (
            f"{share_text(rankings['cut'] / rankings['known_ends'])} of the responses did not end by themselves, so "
            "people ranked beginnings: sample again with a larger --max-response-tokens."
        )
    longer_wins = rankings["longer_wins"]
    if longer_wins is not None and longer_wins["rate"] > LONGER_WINS and longer_wins["low"] > 0.5:
        yield (
            f"the longer response wins {share_text(longer_wins['rate'])} of pairs ({share_text(longer_wins['low'])} to "
            f'{share_text(longer_wins["high"])}), so "longer is better" is right that often without reading, and the '
            "reward "
            "will learn it (arXiv 2310.03716). Add pairs that a shorter response wins, and watch the length in PPO."
        )
    agreement = rankings["agreement"]
    if agreement is not None and agreement["rate"] < LOW_AGREEMENT and agreement["pairs"] >= ENOUGH_COMPARED:
        yield (
            f"labelers agree on only {share_text(agreement['rate'])} of {pluralize(agreement['pairs'], 'pair')} "
            "(InstructGPT's: 72.6 %), and a reward model can hardly agree with them more often. Clearer instructions "
            "help, or several labels a pair."
        )
    if rankings["labelers"] == 1:
        yield (
            f"1 labeler made all rankings ({rankings['count']:,}), so how far people agree cannot be known: let a "
            "second one rank some of the same."
        )


def _repeated_rows_advice(file: Report) -> Iterator[str]:
    """Yields advice if many rows are copies, or if many prompts begin alike or continue one another."""
    duplicates = file["duplicates"]
    rows, is_exact = duplicates["rows"], not duplicates["estimated"]
    if duplicates["repeated_rows"] > NEGLIGIBLE_SHARE * rows:
        yield (
            f"{share_text(duplicates['repeated_rows'] / rows, is_exact)} of rows only repeat an earlier one exactly: "
            f"of {rows:,} rows, {'' if is_exact else 'about '}{rows - duplicates['repeated_rows']:,} are different. "
            "Training counts a row as often as it stands there: leave the repeats out unless that is meant."
        )
    for name, description in [
        ("begin_alike", "begin like a different prompt (128 characters)"),
        ("continued", "are continued by another"),
    ]:
        if duplicates[name] >= NARROW_SHARE * rows:
            yield (
                f"{share_text(duplicates[name] / rows, is_exact)} of prompts ({duplicates[name]:,}) {description}: the "
                f"data are narrower than their {rows:,} rows suggest; sample and ppo leave such prompts out with "
                "--deduplicate prefix."
            )


def _split_advice(file: Report) -> Iterator[str]:
    """Yields advice on the validation split of every stage that can read the file."""
    for stage in file["stages"]:
        if stage["error"] is None and stage["split"] is not None:
            yield from _stage_split_advice(stage["stage"], stage["split"])


def _stage_split_advice(stage: str, split: dict[str, Any]) -> Iterator[str]:
    """Yields advice if one side of the split is empty, or if many validation prompts resemble training prompts."""
    fraction, rows = split["fraction"], split["train"] + split["validation"]
    if rows and fraction and not (split["train"] and split["validation"]):
        empty_side = "validation" if split["train"] else "training"
        if split["enough"] is None:
            way_out = "there are too few to divide: --validation-fraction 0 trains on all of them, unmeasured"
        else:
            way_out = f"--validation-fraction {split['enough']:g} gives some, and 0 trains on all of them, unmeasured"
        yield (
            f"{stage} would stop: of {pluralize(rows, 'row')}, --validation-fraction {fraction:g} leaves none for "
            f"{empty_side}; {way_out}."
        )
    if split["begin_alike"] > NARROW_SHARE * split["validation"]:
        yield (
            f"for {stage}, a different training prompt begins like {split['begin_alike']:,} of "
            f"{pluralize(split['validation'], 'validation prompt')}, so validation figures will look better than on "
            "new prompts."
        )


def _empty_column_advice(file: Report) -> Iterator[str]:
    """Yields advice for a column that is mostly empty, if rows are read as a poorer kind because of that."""
    signs = file["signs"]
    for name, empty_share in signs["empty"].items():
        if empty_share >= EMPTY_SHARE and set(file["kinds"]) <= {"prompts", "texts"}:
            yield (
                f"column {name!r} is there but empty in {share_text(empty_share, signs['exact'])} of rows, so they are "
                f"read as {' and '.join(file['kinds'])}."
            )


def _unused_column_advice(file: Report) -> Iterator[str]:
    """Yields advice on columns that code could check answers with, and on filled columns that are not used."""
    signs, formats = file["signs"], " and ".join(file["formats"])
    is_exact, columns = signs["exact"], signs["columns"]
    checkable_columns = [
        name
        for name in columns
        if name.lower() in (*ANSWER_COLUMNS, *TEST_COLUMNS) and columns[name] >= CHECKABLE_SHARE
    ]
    evidence = ""
    if checkable_columns:
        evidence = f"{share_text(columns[checkable_columns[0]], is_exact)} of rows bring {checkable_columns[0]!r}"
    elif signs["ends_in_number"] >= CHECKABLE_SHARE:
        evidence = f"{share_text(signs['ends_in_number'], is_exact)} of answers end in a number"
    if evidence:
        yield (
            f"{evidence}, which code can check: such a reward (ppo --reward-functions) needs no labels and is harder "
            "to fool."
        )
    if "responses" in columns and list(file["kinds"]) == ["prompts"]:
        yield "there are responses without ranks: add ranks to each row, 1 for the best, and the rows are rankings."
    for name in columns:
        is_beside_ranks = name == "ratings" and "ranking" in file["formats"]  # the app asks for both
        if name.lower() in MEANINGFUL_COLUMNS and columns[name] > NEGLIGIBLE_SHARE and not is_beside_ranks:
            yield (
                f"column {name!r} is filled in {share_text(columns[name], is_exact)} of rows, but {formats} does not "
                "use it: the model will not see it, and nothing is learned from it."
            )


RULES_OF_RECORDS = (
    *(_template_advice, _length_limit_advice, _ranking_advice, _vote_advice, _repeated_rows_advice),
    *(_split_advice, _empty_column_advice, _unused_column_advice),
)
