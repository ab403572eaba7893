"""latentkiln: lists of prompts and meshes in, finished glTF assets out.

Importing the package loads nothing heavy (no torch, Ray or diffusers).

Where a comment says METHOD it means the paper (Metzer, Richardson, Patashnik, Giryes, Cohen-Or: Latent-NeRF for
Shape-Guided Generation of 3D Shapes and Textures, CVPR 2023) and what its public implementations are known to do, in
eight sections: 1 score distillation, 2 text guidance, 3 Latent-NeRF, 4 RGB refinement, 5 Sketch-Shape, 6 Latent-Paint,
7 published figures, 8 traps in public implementations, which are avoided here.
"""

import os

# Idle OpenMP threads sleep instead of spinning. On cores that anything else uses, too, a spinning thread waits for
# one that is not scheduled, and a paint step takes many times longer. Read once, when torch loads OpenMP.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
