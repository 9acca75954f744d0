"""The demo corpus: synthetic speech."""
