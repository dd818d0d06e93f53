"""Text encoders: prompts to token states and a mask of real tokens."""
