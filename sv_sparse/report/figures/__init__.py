"""Figures of runs and of comparisons, drawn by matplotlib as SVG that follows light and dark."""
