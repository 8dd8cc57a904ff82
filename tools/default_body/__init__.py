"""Developer tool that makes `skel_fit/default_body/asset.npz` and `pipeline/demo_motion.npz`.

Nothing here is imported at run time. `python -m tools.default_body --work DIR` fetches the
pinned packages (about 130 MB) and builds both files; it needs the extra `build` (trimesh, embreex).
The order of the steps is in `recipe.py`; each module tells what its step does and why.
"""
