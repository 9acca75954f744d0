"""Embeddings to scores, scores to error rates."""
