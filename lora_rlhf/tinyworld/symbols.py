"""The tiny base with embeddings of its own for symbols that its pretraining never showed, such as braces and quotes.

There, all unseen tokens have one and the same embedding, which is also the LM head's row: no adapter can tell them apart,
so none could learn to write JSON. Here each gets a random one, as large as those of the tokens that were seen.
"""

import json
import math
import operator
import random
import struct
from collections.abc import Sequence
from pathlib import Path

from lora_rlhf.system.disk import new_file
from lora_rlhf.system.plain_files import read_file

BASE = Path(__file__).parent / "base"
EMBEDDINGS, WEIGHTS = "model.embed_tokens.weight", "model.safetensors"
FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", WEIGHTS)
UNSEEN = "\u0100"  # how byte-level tokenizers spell byte 0, which is in no text
SAME = 0.9  # cosine similarity with UNSEEN's embedding; that of seen tokens is below 0.3
SEED = 20220304


def write_base_with_symbols(folder: Path, chat_template: str) -> None:
    """Writes a base to a folder: the tiny one with new embeddings of unseen tokens, and with this chat template."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = {name: read_file(BASE / name, follow_links=True) for name in FILES}
    contents |= {
        WEIGHTS: _with_new_embeddings(contents[WEIGHTS]),
        "chat_template.jinja": chat_template.encode(),
    }
    for name, content in contents.items():
        with new_file(folder / name) as file:
            file.write(content)


def _with_new_embeddings(data: bytes) -> bytes:
    """The safetensors file with other embeddings: a header in JSON, and after it the tensors' bytes, in bfloat16."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])[EMBEDDINGS]
    width, (begin, end) = header["shape"][1], header["data_offsets"]
    values = _from_bfloat16(data[start + begin : start + end])
    vectors = [values[place : place + width] for place in range(0, len(values), width)]
    unseen = vectors[json.loads(read_file(BASE / "tokenizer.json", follow_links=True))["model"]["vocab"][UNSEEN]]
    is_unseen = [_cosine(vector, unseen) > SAME for vector in vectors]
    seen = [value for vector, is_new in zip(vectors, is_unseen, strict=True) if not is_new for value in vector]
    rng, spread = random.Random(SEED), math.sqrt(_product(seen, seen) / len(seen))
    drawn = [
        [rng.gauss(0.0, spread) for _ in vector] if is_new else vector
        for vector, is_new in zip(vectors, is_unseen, strict=True)
    ]
    return data[: start + begin] + _to_bfloat16([value for row in drawn for value in row]) + data[start + end :]


def _product(first: Sequence[float], second: Sequence[float]) -> float:
    return math.fsum(map(operator.mul, first, second))


def _cosine(first: Sequence[float], second: Sequence[float]) -> float:
    return _product(first, second) / math.sqrt(_product(first, first) * _product(second, second))


def _from_bfloat16(data: bytes) -> tuple[float, ...]:
    """The values of bfloat16 numbers, which are the upper halves of float32 numbers."""
    wide = bytearray(2 * len(data))
    wide[2::4], wide[3::4] = data[0::2], data[1::2]
    return struct.unpack(f"<{len(data) // 2}f", wide)


def _to_bfloat16(values: Sequence[float]) -> bytes:
    wide = struct.pack(f"<{len(values)}f", *values)
    data = bytearray(len(wide) // 2)
    data[0::2], data[1::2] = wide[2::4], wide[3::4]
    return bytes(data)
