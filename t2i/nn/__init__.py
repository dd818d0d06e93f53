"""Building blocks of the networks, with the parameter names of diffusers."""
