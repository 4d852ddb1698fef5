"""How many rows of a file each stage would use, and how many of them it would hold out."""

from typing import Any

from lora_rlhf.configs.catalogue import ROW_KINDS, readers
from lora_rlhf.data.formats import RecordKind, format_named
from lora_rlhf.inspection.reading import Reading

# {kind of rows: the stages that read it}
READERS: dict[RecordKind, str] = {
    kind: ", ".join(stage.name for stage in readers(kind)) for kind in dict.fromkeys(ROW_KINDS.values())
}
HELD_OUT = "validation_fraction"
# {kind of rows: the share of prompts that its first reader holds out}
OWN_FRACTIONS: dict[str, Any] = {
    kind: stage.config.__dataclass_fields__[HELD_OUT].default
    for kind in READERS
    for stage in readers(kind)[:1]
    if stage.has_setting(HELD_OUT)
}
REASONS = 3  # of rows that one stage refuses


def fractions(given: float | None) -> dict[str, float]:
    """The share of prompts that is held out, by kind: the one that was asked for, else that of the kind's stage."""
    return OWN_FRACTIONS if given is None else dict.fromkeys(OWN_FRACTIONS, given)


def kinds_of(reading: Reading) -> list[RecordKind]:
    """The kinds that a stage could read a file as, which was read as what its columns say.

    Any file serves as prompts too; that is a kind of its own only where rows hold nothing else, or nothing usable.
    """
    kinds = {kind for name in reading.recognised for kind in format_named(name).readers}
    readable = kinds if not reading.used else kinds - {"prompts"}
    kinds_found = [kind for kind in READERS if kind in readable or kind in reading.figures.kinds]
    return kinds_found if kinds_found or not reading.read else ["prompts"]


def is_read_as(kind: RecordKind, reading: Reading) -> bool:
    """Whether the kind's stage would use the very rows of a file that was read as what its columns say."""
    formats = map(format_named, reading.recognised)
    as_other = any(kind in format.readers and next(iter(format.readers)) != kind for format in formats)
    return not as_other and set(reading.figures.kinds) <= {kind}


def usage(kind: RecordKind, reading: Reading) -> dict[str, Any]:
    """What the kind's stage would do with the rows, before any limit of tokens; `reading` is of the file as that kind.

    stage; kind; error: why it could not be read so, or None; used, refused: rows; reasons: of those refused, {reason:
    rows}; records: what is made of the used rows; tied: rankings that the reward stage leaves out; different: prompts,
    each once; split: None, or `fraction`, and the rows of either side as of `Prints.split`.
    """
    prints, rows = reading.figures.prints, reading.rows
    fraction = reading.figures.fractions.get(kind)
    return {
        "stage": READERS[kind],
        "kind": kind,
        "error": None,
        "used": rows["used"],
        "refused": rows["refused"],
        "reasons": {reason: group.count for reason, group in list(reading.refused.by_reason().items())[:REASONS]},
        "records": reading.records,
        "tied": reading.figures.rankings.all_tied,
        "different": prints.num_distinct,
        "split": None if fraction is None else {"fraction": fraction, **prints.split()},
    }
