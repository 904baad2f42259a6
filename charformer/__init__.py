"""Train, fine-tune and sample small character-level GPTs on the machine that a person has."""

__version__ = "0.1.0"
