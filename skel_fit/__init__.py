"""Body models and the SMPL-to-SKEL fit: tensors in, tensors out."""
