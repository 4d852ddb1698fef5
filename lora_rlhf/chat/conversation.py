"""The messages of a conversation, the settings of its answers, and commands. Without model and terminal."""

import json
import math
from pathlib import Path

from lora_rlhf.chat.config import MOST_SEED
from lora_rlhf.data.schema import Message, Prompt
from lora_rlhf.system.disk import write_text

HELP = """/system TEXT      another system message, and a new conversation; without TEXT none
/reset            a new conversation
/temperature T    0 takes the most probable token, 1 samples as training does
/seed N           answers are drawn anew from here
/save FILE        the conversation as a line of JSON, which training reads as a demonstration
/quit             the end; so is Ctrl-D
Ctrl-C stops an answer. A line that begins with // is said with one /."""
ANSWERS_PER_SEED = 2**20  # the answers of one seed have seeds of their own: seed * 2**20, seed * 2**20 + 1, ...


class ConversationEnd(Exception):
    """The person ends the conversation."""


class Conversation:
    """Messages, and the settings of the next answer."""

    def __init__(self, system: str | None, temperature: float, seed: int) -> None:
        self.system = system
        self.temperature = temperature
        self.seed = seed
        self.messages: list[Message] = []
        self._num_answers = 0

    def prompt_and_seed(self, question: str) -> tuple[Prompt, int]:
        """The conversation with a question at its end, and the seed of the answer. Changes nothing.

        Raises BadRow for a question that cannot be in a prompt, for example an empty one.
        """
        system = () if self.system is None else (Message("system", self.system),)
        return Prompt(
            (*system, *self.messages, Message("user", question))
        ), self.seed * ANSWERS_PER_SEED + self._num_answers

    def add_answer(self, question: str, answer: str) -> None:
        """Adds a question and its answer, complete or stopped."""
        self.messages += [Message("user", question), Message("assistant", answer)]
        self._num_answers += 1

    def run_command(self, line: str) -> str:
        """Runs a line that begins with a slash; returns the message to print. Raises ConversationEnd for /quit."""
        name, _, argument = line[1:].partition(" ")
        argument = argument.strip()
        if name in ("quit", "exit"):
            raise ConversationEnd
        if name == "reset":
            self._delete_messages()
            return "a new conversation"
        if name == "system":
            self.system = argument or None
            self._delete_messages()
            return f"a new conversation, {'with that system message' if argument else 'without a system message'}"
        if name == "temperature":
            return self._set_temperature(argument)
        if name == "seed":
            if not argument.isdecimal() or int(argument) >= MOST_SEED:
                return f"/seed takes a whole number below {MOST_SEED}, not {argument!r}"
            self.seed, self._num_answers = int(argument), 0
            return f"seed {self.seed}"
        if name == "save":
            return self._save_messages(argument)
        return HELP if name == "help" else f"/{name} is no command\n{HELP}"

    def _delete_messages(self) -> None:
        self.messages, self._num_answers = [], 0

    def _set_temperature(self, text: str) -> str:
        """Sets the temperature of the next answers; returns the message to print."""
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value >= 0):
            return f"/temperature takes a number of at least 0, not {text!r}"
        self.temperature = value
        return f"temperature {value:g}"

    def _save_messages(self, file_name: str) -> str:
        """Writes the messages as one row of demonstrations; returns the message to print."""
        if not file_name:
            return "/save takes the name of a file"
        if not self.messages:
            return "nothing was said yet"
        path = Path(file_name).expanduser()
        if path.exists():
            return f"{path} is there already; choose another name"
        system = [] if self.system is None else [Message("system", self.system)]
        rows = [{"role": message.role, "content": message.content} for message in (*system, *self.messages)]
        try:
            write_text(path, json.dumps({"messages": rows}, ensure_ascii=False) + "\n")
        except OSError as error:
            return f"{path}: cannot be written ({error.strerror})"
        return f"{path}: {len(rows)} messages"
