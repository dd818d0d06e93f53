"""Measuring models: bounds, distances and scores."""
