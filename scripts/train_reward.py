"""Stage `reward` as a plain script: the same flags as `lora-rlhf reward`."""

import sys

from lora_rlhf.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["reward", *sys.argv[1:]]))
