"""Reward hacking: prompts that show a failure (probes), checks of their answers, and the audit of a candidate."""
