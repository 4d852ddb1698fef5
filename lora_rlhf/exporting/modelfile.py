"""Ollama's Modelfile: the chat template in Go's template language, checked on sample conversations, and stop tokens.

A template is divided into the texts that it writes between two messages. In most templates such a text depends only on
the roles of both messages, and the Go template writes the same texts. The sample conversations detect other templates,
which are refused.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_rlhf.data.markup import render_chat
from lora_rlhf.data.template import bos_before_text, ensure_template, stop_ids
from lora_rlhf.system.disk import write_text
from lora_rlhf.system.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("lora_rlhf")

Messages = Sequence[tuple[str, str]]  # role, content
# Ollama's own defaults cut the distribution off; these sample from all of it, as training does.
PARAMETERS = {"temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0, "repeat_penalty": 1}
SAMPLE_WORDS = ("Alpha7", "Beta7", "Gamma7", "Delta7", "Omega7")
SAMPLE_CONVERSATIONS: tuple[Messages, ...] = (
    (("user", "Hi"),),
    (("system", "Be brief."), ("user", 'Two\nlines, "quoted" and {{ braced }}?')),
    (("user", "One"), ("assistant", "Two"), ("user", "Three")),
    (("system", "S"), ("user", "A"), ("assistant", "B"), ("user", "C"), ("assistant", "D"), ("user", "E")),
)


class Untranslatable(Exception):
    """The template cannot be written in Go's language; the message says why."""


@dataclass(frozen=True)
class BetweenTexts:
    """The texts between messages: {(role before or "", role after or ""): text}; "" is the start or the end."""

    texts: dict[tuple[str, str], str]
    takes_system: bool

    def rendered_prompt(self, messages: Messages) -> str:
        """The prompt that Ollama makes of a conversation whose last message is the user's."""
        previous_role, parts = "", []
        for role, content in messages:
            parts += [self.texts[previous_role, role], content]
            previous_role = role
        return "".join([*parts, self.texts[previous_role, ""]])

    def go_template(self) -> str:
        """The same in Go's text/template. Its texts are quoted constants, of which Ollama keeps every space."""
        text = {pair: _go_constant(between) for pair, between in self.texts.items()}
        after_system = f'{{{{ else if eq $before "system" }}}}{text["system", "user"]}' if self.takes_system else ""
        branches = [
            f'{{{{ if eq .Role "user" }}}}{{{{ if eq $before "none" }}}}{text["", "user"]}{after_system}'
            f"{{{{ else }}}}{text['assistant', 'user']}{{{{ end }}}}{{{{ .Content }}}}",
            f'{{{{ else if eq .Role "assistant" }}}}{text["user", "assistant"]}{{{{ .Content }}}}',
        ]
        if self.takes_system:
            branches.append(f'{{{{ else if eq .Role "system" }}}}{text["", "system"]}{{{{ .Content }}}}')
        body = "".join(branches)
        remember = "{{ $before = .Role }}"
        if not self.takes_system:
            remember = f'{{{{ if ne .Role "system" }}}}{remember}{{{{ end }}}}'
        return (
            f'{{{{ $before := "none" }}}}{{{{ range .Messages }}}}{body}{{{{ end }}}}{remember}'
            f'{{{{ end }}}}{{{{ if ne $before "assistant" }}}}{text["user", ""]}{{{{ end }}}}'
        )


def find_between_texts(tokenizer: "PreTrainedTokenizerBase") -> BetweenTexts:
    """The texts that the tokenizer's template writes between messages, without BOS, which Ollama adds itself.

    Raises Untranslatable if the sample conversations show that the texts do not only depend on the roles.
    """
    ensure_template(tokenizer)
    user, answer = "user", "assistant"
    texts = _read_between_texts(tokenizer, (user, answer, user, answer, user))
    takes_system = True
    try:
        texts |= _read_between_texts(tokenizer, ("system", user, answer, user))
    except UserError:
        takes_system = False
    between = BetweenTexts(texts, takes_system)
    for sample in SAMPLE_CONVERSATIONS:
        if sample[0][0] == "system" and not takes_system:
            continue
        expected, rendered = _rendered_template(tokenizer, sample), between.rendered_prompt(sample)
        if rendered != expected:
            raise Untranslatable(f"{sample!r} would be {rendered!r}, and the template writes {expected!r}")
    return between


def _read_between_texts(tokenizer: "PreTrainedTokenizerBase", roles: tuple[str, ...]) -> dict[tuple[str, str], str]:
    """Renders a conversation of these roles with known words, and reads the texts between the words."""
    words = SAMPLE_WORDS[: len(roles)]
    unread_text = _rendered_template(tokenizer, list(zip(roles, words, strict=True)))
    texts: dict[tuple[str, str], str] = {}
    for previous_role, role, word in zip(("", *roles), (*roles, ""), (*words, None), strict=False):
        if word is None:
            text, unread_text = unread_text, ""
        else:
            text, content, unread_text = unread_text.partition(word)
            if not content:
                raise Untranslatable(f"the template leaves a message of the {role} out")
        if texts.setdefault((previous_role, role), text) != text:
            raise Untranslatable(
                f"between {previous_role} and {role} the template writes {texts[previous_role, role]!r} and {text!r}"
            )
    return texts


def _rendered_template(tokenizer: "PreTrainedTokenizerBase", messages: Messages) -> str:
    """The prompt that the tokenizer's template makes of a conversation, without BOS."""
    conversation = [{"role": role, "content": content} for role, content in messages]
    text = render_chat(tokenizer, conversation, add_generation_prompt=True)
    return text.removeprefix(tokenizer.bos_token) if bos_before_text(tokenizer) else text


def _go_constant(text: str) -> str:
    """A Go action that writes this text; empty for an empty text."""
    escapes = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}
    quoted = "".join(escapes.get(char) or (char if " " <= char <= "~" else f"\\U{ord(char):08x}") for char in text)
    return f'{{{{ "{quoted}" }}}}' if text else ""


def write_modelfile(
    folder: Path, tokenizer: "PreTrainedTokenizerBase", weights: str, max_context_tokens: int | None
) -> str | None:
    """Writes Modelfile, for `ollama create`. `weights`: the argument of FROM, "." or "./model.gguf".

    Returns None. For a template that cannot be translated, writes nothing, and logs and returns the reason: nobody
    would notice a wrong template.
    """
    try:
        between_texts = find_between_texts(tokenizer)
    except (Untranslatable, UserError) as error:
        reason = f"no Modelfile: Ollama's template language cannot follow this chat template ({error})"
        log.warning(reason)
        return reason
    stops = [tokenizer.convert_ids_to_tokens(id) for id in stop_ids(tokenizer)]
    context_parameter = {} if max_context_tokens is None else {"num_ctx": max_context_tokens}
    lines = [
        f"FROM {weights}",
        f'TEMPLATE """{between_texts.go_template()}"""',
        *(f'PARAMETER stop """{stop}"""' for stop in stops),
        *(f"PARAMETER {name} {value}" for name, value in {**PARAMETERS, **context_parameter}.items()),
    ]
    if not between_texts.takes_system:
        lines.insert(1, "# The chat template takes no system message: one is left out.")
    write_text(folder / "Modelfile", "\n".join(lines) + "\n")
    return None
