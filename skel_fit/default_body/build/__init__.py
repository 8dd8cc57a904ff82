"""Developer tool that makes `skel_fit/default_body/asset.npz` and `pipeline/demo_motion.npz`.

Nothing here is imported at run time. `python -m skel_fit.default_body.build --work DIR` fetches the
pinned packages (about 130 MB), builds both files and compares them with the committed ones; it needs
the extra `build` (trimesh, embreex, rtree). `docs/default-body.md` tells what each step does.
"""
