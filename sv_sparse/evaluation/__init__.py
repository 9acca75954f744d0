"""Evaluation of trained networks: embeddings, trial lists, results."""
