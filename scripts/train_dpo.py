"""Stage `dpo` as a plain script: the same flags as `lora-rlhf dpo`."""

import sys

from lora_rlhf.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["dpo", *sys.argv[1:]]))
