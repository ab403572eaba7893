"""Converts foreign files (FBX, DAE, 3DS, OBJ with MTL, USD) into glTF 2.0 documents."""
