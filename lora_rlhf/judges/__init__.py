"""Who decides which of two responses is better: scores, people's rankings, another model, or one behind an API."""
