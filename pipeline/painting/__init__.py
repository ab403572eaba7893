"""Mesh surfaces that are painted: by score distillation, or by views sampled together."""
