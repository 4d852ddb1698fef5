"""Stage `sft` as a plain script: the same flags as `lora-rlhf sft`."""

import sys

from lora_rlhf.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["sft", *sys.argv[1:]]))
