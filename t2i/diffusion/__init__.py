"""Noise schedules, prediction kinds and samplers, one paper a file (torch and the standard library, no nn.Module)."""
