"""The latent diffusion prior: found and hashed without torch (``identity``), loaded and run (``load``)."""
