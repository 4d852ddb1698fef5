"""A tokenizer with the habits of Qwen3: thoughts between tokens that are not special, hidden from the history."""

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
QWEN = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% set content = m.content %}{% set thought = '' %}"
    "{% if m.role == 'assistant' %}{% set thought = m.reasoning_content or '' %}"
    "{% if '</think>' in content and not thought %}"
    "{% set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if loop.last %}{{ '<think>\n' + thought.strip('\n') + '\n</think>\n\n' }}{% endif %}{% endif %}"
    "{{ content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
    "{# <tool_call> </tool_call> #}"
)


def give_thoughts(tokenizer: PreTrainedTokenizerFast, start: str = "<|im_start|>", end: str = "<|im_end|>") -> None:
    """Gives the tokenizer (in place) the tags and the template, with these tokens around a turn."""
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    tokenizer.chat_template = QWEN.replace("<|im_start|>", start).replace("<|im_end|>", end)
