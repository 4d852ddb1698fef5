"""The command line: commands, their flags, and recipes of several stages."""

try:
    import fcntl  # noqa: F401  (locks of run folders)
except ImportError:
    raise SystemExit("error: lora-rlhf needs Linux or macOS; on Windows, run it inside WSL2") from None
