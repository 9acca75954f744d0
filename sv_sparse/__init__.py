"""Train speaker-verification networks that end exactly as sparse as asked, in one run."""

__version__ = "0.2.0"
