"""Engines that run the networks of a pipeline: torch, or OpenVINO on a CPU."""
