"""What a run achieved: its stages answer the same prompts, a judge compares the answers, and a report says so."""
