"""A latent text-to-image pipeline."""
