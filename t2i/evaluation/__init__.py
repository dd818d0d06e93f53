"""Measuring models: bounds, distances, scores and studies."""
