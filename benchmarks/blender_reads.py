"""What Blender makes of an exported rig: `PYTHON_WITH_BPY benchmarks/blender_reads.py FILE.glb`.

Needs Blender as a module (`pip install bpy`, numpy below 2) and FILE.npz with the true vertices
(`python -m benchmarks.viewer --glb FILE.glb`, 30 frames a second). Prints distances in millimetres.
"""

import sys
from pathlib import Path

import bpy
import numpy as np


def main() -> None:
    """Compare every tenth frame."""
    path = Path(sys.argv[1])
    truth = np.load(path.with_suffix(".npz"))
    bpy.ops.wm.read_factory_settings(use_empty=True)
    bpy.context.scene.render.fps = 30
    bpy.ops.import_scene.gltf(filepath=str(path))
    print(f"Blender {bpy.app.version_string}")
    for name in ("skin", "bones"):
        meshes = [o for o in bpy.data.objects if o.type == "MESH" and o.name.startswith(name)]
        far = []
        for frame in range(0, len(truth[name]), 10):
            bpy.context.scene.frame_set(frame)
            shown = meshes[0].evaluated_get(bpy.context.evaluated_depsgraph_get())
            points = np.array([shown.matrix_world @ v.co for v in shown.to_mesh().vertices])
            points = np.column_stack([points[:, 0], points[:, 2], -points[:, 1]])  # z up -> y up
            far.append(1000 * np.linalg.norm(points - truth[name][frame], axis=1))
        print(f"{name}: mean {np.mean(far):.3f} mm, largest {np.max(far):.3f} mm")


if __name__ == "__main__":
    main()
