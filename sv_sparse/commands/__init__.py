"""Commands of the console script, a file for each, which imports what that one needs."""
