"""Captioned images: sources, decoding, the order of samples, checks, and the cache of latents and text states."""
