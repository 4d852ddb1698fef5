"""How many rows of a file each stage would use, and how many of them it would hold out."""

from typing import Any

from lora_rlhf.configs.catalogue import ROW_KINDS, readers
from lora_rlhf.data.formats import RecordKind, find_format
from lora_rlhf.inspection.reading import Reading

# {kind of rows: the stages that read it}
READERS: dict[RecordKind, str] = {
    kind: ", ".join(stage.name for stage in readers(kind)) for kind in dict.fromkeys(ROW_KINDS.values())
}
FRACTION_SETTING = "validation_fraction"  # name of the setting
# {kind of rows: the share of prompts that its first reader holds out}
DEFAULT_FRACTIONS: dict[str, Any] = {
    kind: stage.config.__dataclass_fields__[FRACTION_SETTING].default
    for kind in READERS
    for stage in readers(kind)[:1]
    if stage.has_setting(FRACTION_SETTING)
}
MOST_REASONS = 3  # for refusals of one stage


def held_out_fractions(fraction: float | None) -> dict[str, float]:
    """{kind: share of prompts that is held out}: the given one, or else the default of the kind's stage."""
    return DEFAULT_FRACTIONS if fraction is None else dict.fromkeys(DEFAULT_FRACTIONS, fraction)


def readable_kinds(reading: Reading) -> list[RecordKind]:
    """The kinds that some stage could read the file as; `reading` is of the file as its columns say.

    A stage can read any file as prompts. That counts as a kind only if the rows hold nothing else, or nothing usable.
    """
    kinds = {kind for name in reading.recognised for kind in find_format(name).readers}
    format_kinds = kinds if not reading.used else kinds - {"prompts"}
    stage_kinds = [kind for kind in READERS if kind in format_kinds or kind in reading.figures.kinds]
    return stage_kinds if stage_kinds or not reading.num_read else ["prompts"]


def is_same_reading(kind: RecordKind, reading: Reading) -> bool:
    """Whether the kind's stage would use exactly the rows of this reading, which is as the file's columns say."""
    formats = map(find_format, reading.recognised)
    has_format_of_other_kind = any(kind in format.readers and next(iter(format.readers)) != kind for format in formats)
    return not has_format_of_other_kind and set(reading.figures.kinds) <= {kind}


def stage_use(kind: RecordKind, reading: Reading) -> dict[str, Any]:
    """How the kind's stage would use the rows, before any limit of tokens; `reading` reads the file as that kind.

    stage; kind; error: why the file cannot be read as that kind, or None; used, refused: numbers of rows; reasons:
    {reason: refused rows}; records: how many are made of the used rows; tied: rankings that the reward stage leaves
    out; different: different prompts; split: None, or `fraction` and the rows of both sides as of
    `Prints.split_counts`.
    """
    prints, rows = reading.figures.prints, reading.rows
    fraction = reading.figures.fractions.get(kind)
    return {
        "stage": READERS[kind],
        "kind": kind,
        "error": None,
        "used": rows["used"],
        "refused": rows["refused"],
        "reasons": {
            reason: group.count for reason, group in list(reading.refused.reasons_by_count().items())[:MOST_REASONS]
        },
        "records": reading.records,
        "tied": reading.figures.rankings.all_tied,
        "different": prints.num_distinct,
        "split": None if fraction is None else {"fraction": fraction, **prints.split_counts()},
    }
