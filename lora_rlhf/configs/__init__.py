"""What a person can choose: a dataclass per stage, with every fault of its values named at once."""
