"""Published HMR-SKEL labels, `*-release_skel.npz` and its three other spellings.

Source: docs/reference/label-formats.md#hmr-skel. Two flavours: the converter's (skel_poses,
skel_betas, skel_trans beside the CameraHMR columns) and the repacked HSMR one (orig_poses,
orig_betas, keypoints_2d, keypoints_3d), which may hold no SMPL pose: its rows are then rejected
with `no_smpl_pose`, and can be read and audited but not converted.
"""

from __future__ import annotations

from pipeline.readers.formats import SKIP, Format, Member
from pipeline.readers.labels import LabelOptions, LabelSource, Layout
from pipeline.readers.members import first_of, missing, missing_one, rows_first
from pipeline.readers.npz import NpzFile

FORMAT = "hmr-skel"
POSES, BETAS = ("skel_poses", "orig_poses"), ("skel_betas", "orig_betas")
DESCRIBED = Format(
    name=FORMAT,
    title="HMR-SKEL labels",
    files="`*-release_skel.npz` and its other spellings",
    body="SMPL, and SKEL",
    members=(
        Member("imgname", "(n) text", "below the image root"),
        Member("center", "(n, 2)", "middle of the box, pixels"),
        Member("scale", "(n) or (n, 2)", "side of the box / 200"),
        Member(" | ".join(POSES), "(n, 46)", "SKEL's angles, radians"),
        Member(" | ".join(BETAS), "(n, 10)", "SKEL's shape"),
        Member("skel_trans", "(n, 3)", "metres", needed=False),
        Member("pose_cam | poses", "(n, 72)", "SMPL axis-angle; absent: rows rejected", False),
        Member("shape | betas", "(n, 10 or more)", "SMPL's shape", needed=False),
        Member("trans_cam | trans", "(n, 3)", "metres; absent: zeros", needed=False),
        Member("cam_int", "(n, 3, 3)", "pixels", needed=False),
        Member("gtkps | keypoints_2d", "(n, 44 or more, 3)", "pixels and confidence", False),
    ),
    gives="One row a person: every member",
    options=(SKIP,),
    traps=(
        "SKEL labels are carried, not started from; `--no-fit` takes them as they are.",
        "Published files were fitted to the male SMPL mesh of neutral labels (docs/interop.md).",
    ),
    example="coco-release_skel.npz",
)


def open_hmr_skel(file: NpzFile, options: LabelOptions, *, skip: str = "") -> LabelSource:
    """A SKEL label file. skip: members to leave out, separated by commas.

    The SMPL pose is `pose_cam`, else the converter's copy `poses`; likewise shape/betas and
    trans_cam/trans.
    """
    for name in ("imgname", "center", "scale"):
        if name not in file.members:
            raise missing(file, name)
    skel_poses = _required(file, POSES)
    skel_betas = _required(file, BETAS)
    table = rows_first(file, skel_poses, skip)
    pose = first_of(table.specs, ("pose_cam", "poses"))
    layout = Layout(
        poses=(pose,) if pose else (),
        betas=first_of(table.specs, ("shape", "betas")),
        transl=first_of(table.specs, ("trans_cam", "trans")),
        names="imgname",
        center="center",
        scale="scale",
        cam_int=first_of(table.specs, ("cam_int",)),
        keypoints=first_of(table.specs, ("gtkps", "keypoints_2d")),
        skel_poses=skel_poses,
        skel_betas=skel_betas,
        skel_trans=first_of(table.specs, ("skel_trans",)),
    )
    return LabelSource(FORMAT, table, layout, options)


def _required(file: NpzFile, wanted: tuple[str, ...]) -> str:
    found = first_of(file.members, wanted)
    if found is None:
        raise missing_one(file, wanted)
    return found
