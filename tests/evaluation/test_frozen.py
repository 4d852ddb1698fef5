"""The sets that an evaluation asks beside its prompts: named in the report by what they hold."""

from lora_rlhf.evaluation.config import EvaluateConfig
from lora_rlhf.evaluation.frozen import open_frozen_sets
from lora_rlhf.evaluation.report_model import FrozenSet
from lora_rlhf.probes.sets import ENGLISH, read_probes


def test_the_general_probes_are_asked_by_their_name() -> None:
    frozen = open_frozen_sets(EvaluateConfig(run="runs/x", prompts="p.jsonl", probes="english"), None)
    general = read_probes(ENGLISH)
    assert frozen.probes == general
    assert frozen.sets["probes"] == FrozenSet(name="english", content_hash=general.content_hash, n=136)
