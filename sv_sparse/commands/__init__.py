"""What the console script does besides training, a file for each subcommand, which loads what that one needs."""
