"""The choice of the judge, before anything is loaded, and the judges that need no run."""

from collections.abc import Sequence
from pathlib import Path

from lora_rlhf.data.schema import Prompt
from lora_rlhf.judges.cache import FILE, Cache
from lora_rlhf.judges.config import JudgeConfig
from lora_rlhf.judges.human import HumanJudge
from lora_rlhf.judges.judge import Judge
from lora_rlhf.judges.pairwise import PairwiseJudge
from lora_rlhf.judges.question import read_questions
from lora_rlhf.judges.scores import Gold, first_unknown, prompt_text
from lora_rlhf.runs.folder import Parent
from lora_rlhf.system.errors import UserError


def choose_judge(
    config: JudgeConfig, run: str, reward: Parent | None, gold: Gold | None, prompts: Sequence[Prompt]
) -> str:
    """The name of the judge, before anything is loaded. UserError when the chosen one cannot judge these prompts.

    reward: the run's reward stage. gold: an exact score, which raises KeyError for an unknown prompt.
    """
    if config.judge not in ("auto", "gold", "reward"):
        return config.judge
    unknown = None if gold is None else first_unknown(gold, prompts)
    gold_applies = gold is not None and unknown is None
    if config.judge == "gold" and not gold_applies:
        reason = "there is none here" if unknown is None else f"it does not know the prompt {prompt_text(unknown)!r}"
        raise UserError(f"--judge gold: {reason}; use --judge reward, or the tiny world's prompts")
    if gold_applies and config.judge != "reward":
        return "gold"
    if reward is None:
        raise UserError(
            f"{run}: no reward stage there to judge by, and no gold score for these prompts; "
            f"run `lora-rlhf reward --run {run}` first, or choose another --judge"
        )
    return "reward"


def open_judge(config: JudgeConfig, run: str, device: str, trust_remote_code: bool) -> Judge:
    """The judge of `config.judge`, one of human, local and endpoint. Open it before any long work.

    An endpoint is asked one question; a local model is found but not loaded yet. run: verdicts are kept beside this
    folder, unless the configuration names a file. UserError for a file of rankings, instructions or verdicts that
    cannot be used, for an invalid key, and for a model that is missing or gives no verdict.
    """
    if config.judge == "human":
        assert config.judge_file is not None
        return HumanJudge(config.judge_file)
    questions = read_questions(config.judge_instructions)
    cache = Cache(Path(run).parent / FILE if config.judge_cache is None else Path(config.judge_cache).expanduser())
    if config.judge == "local":
        from lora_rlhf.judges.local import LocalModel

        model = LocalModel(config, device, trust_remote_code)
        model.identity()  # reads its files
        return PairwiseJudge("local", model, questions, cache)
    from lora_rlhf.judges.endpoint import Endpoint

    judge = PairwiseJudge("endpoint", Endpoint(config), questions, cache)
    judge.prove()
    return judge
