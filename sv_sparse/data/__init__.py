"""Files to batches: a table of utterances, trial lists, and random crops of training speech."""
