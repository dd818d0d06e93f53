"""Generators: a loss and a way to sample, on latents."""
