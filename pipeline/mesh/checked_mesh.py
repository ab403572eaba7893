"""Makes the checked mesh of what a reader returns."""

from __future__ import annotations

from pipeline.mesh.mesh import Mesh, assemble
from pipeline.mesh.outliers import outlier_warning
from pipeline.mesh.readers.raw import RawMesh


def checked_mesh(raw: RawMesh, name: str, source_format: str, source_sha256: str, max_faces: int) -> Mesh:
    """``raw`` as a mesh, with a warning for parts that lie far apart. Raises MeshError as ``assemble``."""
    mesh = assemble(
        raw.positions,
        raw.faces,
        uv=raw.uv,
        uv_faces=raw.uv_faces,
        normals=raw.normals,
        normal_faces=raw.normal_faces,
        double_sided=raw.double_sided,
        name=name,
        source_format=source_format,
        source_sha256=source_sha256,
        warnings=raw.warnings,
        max_faces=max_faces,
    )
    if warning := outlier_warning(mesh.vertices, mesh.faces):
        mesh.warnings.append(warning)
    return mesh
