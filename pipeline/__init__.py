"""latentkiln: lists of prompts and meshes in, finished glTF assets out.

Importing the package loads nothing heavy (no torch, Ray or diffusers).
"""

__version__ = "0.1.0"
