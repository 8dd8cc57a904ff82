"""Animated rigs of fitted bodies for other programs: binary glTF and BVH."""
