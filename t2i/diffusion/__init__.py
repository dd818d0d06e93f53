"""Noise schedules, prediction types and samplers, one paper per file (torch and the standard library, no nn.Module)."""
