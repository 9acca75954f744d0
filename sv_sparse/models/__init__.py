"""Filterbank [B, F, T] to embedding [B, E]."""
