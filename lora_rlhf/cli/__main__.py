"""`python -m lora_rlhf.cli`: the command line for launchers that start a module in each process."""

import sys

from lora_rlhf.cli.main import main

sys.exit(main())
