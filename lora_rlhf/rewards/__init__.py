"""Rewards by functions of a response and of its row: built-in ones, a user's own, TRL's; in processes with limits."""
