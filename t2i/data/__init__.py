"""Captioned pictures: where they come from, how they are decoded, in what order they are seen, and their cache."""
