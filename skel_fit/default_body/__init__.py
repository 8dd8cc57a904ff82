"""The licence-free default pair: SMPL- and SKEL-schema models made from free material.

`asset.npz` is committed and expanded on demand; `build/` is the developer tool that makes it.
"""

from .expansion import STANDIN_CALIBRATION, asset_sha256, default_body_arrays
from .files import default_body_directory, write_default_body

__all__ = [
    "STANDIN_CALIBRATION",
    "asset_sha256",
    "default_body_arrays",
    "default_body_directory",
    "write_default_body",
]
