"""Types, errors and small services that every other room uses. Imports no other room.

Conventions of the whole program:

* Frame: right-handed, +Y up, +Z towards the viewer (the glTF frame). The front of an object faces +Z.
* Angles: radians inside, degrees in manifests and on the command line. Azimuth phi is measured from +Z
  towards +X; polar angle theta from +Y (0 = straight above, pi/2 = level, pi = straight below).
* UV: origin at the *top left* of the image, u to the right, v downwards (the glTF convention). Readers of formats
  with a bottom-left origin (OBJ, PLY, OFF) flip v.
* Images: float in [0, 1], channels first in tensors ``(C, H, W)``; channels last in numpy image arrays
  ``(H, W, C)``; row 0 is the top.
* Latents: *scaled* latents, i.e. ``encode(image) * scaling_factor``, as the UNet takes them.
"""
