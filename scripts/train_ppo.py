"""Stage `ppo` as a plain script: the same flags as `lora-rlhf ppo`."""

import sys

from lora_rlhf.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["ppo", *sys.argv[1:]]))
