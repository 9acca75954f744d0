"""A trained network to one file for use."""
