"""What the bounds of chat templates cost: user time of our sandbox beside transformers' own, in turns, in one process.

    python benchmarks/templates.py

Renders conversations with the templates of models that TRL brings, and with the tiny world's; then the whole of what a
stage does with a row, `encode_demonstration`, with and without the bounds.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trl
from provenance import provenance
from transformers.utils import chat_template_utils

from lora_rlhf.data.encode import Limits, encode_demonstration
from lora_rlhf.data.refusals import RefusedRows
from lora_rlhf.data.schema import Demonstration, Message, Prompt
from lora_rlhf.data.template_bounds import bound_templates
from lora_rlhf.model.base import load_tokenizer
from lora_rlhf.system.disk import write_json

WORDS = (
    "the night boat sails with bread for a baker who counts all ships of the river and asks students about it ".split()
)
TEMPLATES = ("qwen3", "llama3", "gemma", "deepseekv3")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--to", type=Path, default=Path("benchmarks/results/templates.json"))
    args = parser.parse_args()
    plain = chat_template_utils._cached_compile_jinja_template
    bound_templates()
    ways = {"transformers": plain, "bounded": chat_template_utils._cached_compile_jinja_template}
    tokenizer = load_tokenizer("tinyworld")
    tokenizer.bos_token = tokenizer.eos_token  # which some templates write
    rows = [demonstration(number) for number in range(args.rows)]
    folder = Path(trl.__file__).parent / "chat_templates"
    templates = {"tinyworld": tokenizer.chat_template}
    templates |= {name: (folder / f"{name}.jinja").read_text(encoding="utf-8") for name in TEMPLATES}
    measured = {}
    for name, template in templates.items():
        tokenizer.chat_template = template
        work: dict[str, Callable[[], Any]] = {
            "rendering": lambda: [render(tokenizer, row) for row in rows],
            "encoding": lambda: [
                encode_demonstration(tokenizer, row, Limits(10**6, 10**6), RefusedRows()) for row in rows
            ],
        }
        measured[name] = {title: compare(call, ways, args.repeats, len(rows)) for title, call in work.items()}
        print(name, json.dumps(measured[name]), flush=True)
    command = f"python benchmarks/templates.py --rows {args.rows} --repeats {args.repeats}"
    write_json(args.to, {**provenance(command), "rows": args.rows, "measured": measured})


def demonstration(number: int) -> Demonstration:
    """A conversation of a question, an answer and a question, of about 300 characters each, and the answer to learn."""
    texts = [" ".join(WORDS[(number + turn + i) % len(WORDS)] for i in range(60)) for turn in range(4)]
    roles = ("user", "assistant", "user")
    messages = tuple(Message(role, text) for role, text in zip(roles, texts, strict=False))
    return Demonstration(Prompt(messages), texts[3])


def render(tokenizer: Any, row: Demonstration) -> Any:
    """What both ways of rendering share, and the template itself."""
    messages = [{"role": message.role, "content": message.content} for message in row.prompt.messages]
    messages.append({"role": "assistant", "content": row.response})
    return tokenizer.apply_chat_template(messages, tokenize=False)


def compare(call: Callable[[], Any], ways: dict[str, Any], repeats: int, num_rows: int) -> dict[str, float]:
    """Microseconds of user time a row in each way, medians of turns, and how much longer ours takes."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name in list(ways)[:: 1 if repeat % 2 else -1]:
            chat_template_utils._cached_compile_jinja_template = ways[name]
            chat_template_utils._compile_jinja_template.cache_clear()
            started = time.process_time()
            call()
            if repeat:  # the first one warms up
                seconds[name].append(time.process_time() - started)
    row = {name: round(1e6 * statistics.median(values) / num_rows, 1) for name, values in seconds.items()}
    ratios = [ours / theirs for theirs, ours in zip(*seconds.values(), strict=True)]
    return {**row, "times": round(statistics.median(ratios), 3)}


if __name__ == "__main__":
    main()
