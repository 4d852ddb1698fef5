"""How often each part of the stages waits for the GPU, and how many kernels it starts: no more than is written here.

Each wait stops the CPU from running ahead, 10 to 20 microseconds at least. A change that lowers a
budget is written here.
"""

from collections import Counter

import pytest

from tests.cuda.conftest import Parts
from tests.support.pretended_cuda import Played

# part: (kernels, {file: waits}); a file that is not listed may not wait at all
FORWARD, PPO = "lora_rlhf/model/forward.py", "lora_rlhf/stages/ppo.py"
UPDATE = "lora_rlhf/stages/ppo_update.py"
TRAINER, STATIC = "lora_rlhf/stages/trainer.py", "lora_rlhf/model/decode_static.py"
BUDGETS: dict[str, tuple[int, dict[str, int]]] = {
    "act, plain": (3656, {"lora_rlhf/model/decode_plain.py": 124}),
    "act, static": (330, {STATIC: 41}),
    "act, static, merged": (344, {STATIC: 41}),
    "judge": (883, {FORWARD: 48, PPO: 6}),
    "policy": (1221, {FORWARD: 21, UPDATE: 10, TRAINER: 2}),
    "value": (1149, {FORWARD: 21, UPDATE: 9, TRAINER: 2}),
    "sft": (999, {FORWARD: 6, "lora_rlhf/model/shared.py": 2, "lora_rlhf/stages/sft.py": 8, TRAINER: 2}),
    "reward": (1907, {"lora_rlhf/algo/losses.py": 12, FORWARD: 32, "lora_rlhf/stages/reward.py": 8, TRAINER: 2}),
}


@pytest.mark.slow
def test_no_part_waits_or_starts_more_than_its_budget(played: Played, parts: Parts) -> None:
    assert parts.works.keys() == BUDGETS.keys()
    excess = []
    for name, work in parts.works.items():
        work()  # what happens once, such as the state of an optimizer
        played.waits.clear()
        played.launches.clear()
        work()
        kernels, budget = BUDGETS[name]
        waits = Counter[str]()
        for (_, line), count in played.waits.items():
            waits[line.rpartition(":")[0]] += count
        for file, count in waits.items():
            if count > budget.get(file, 0):
                lines = [f"{what} at {line}: {n}" for (what, line), n in played.waits.items() if line.startswith(file)]
                excess.append(f"{name}: {count} waits in {file}, not {budget.get(file, 0)}: {'; '.join(sorted(lines))}")
        if played.launches.total() > kernels:
            excess.append(f"{name}: {played.launches.total()} kernels, not {kernels}: {played.launches.most_common()}")
    assert not excess, "\n".join(excess)
