"""Local web page and HTTP interface."""
