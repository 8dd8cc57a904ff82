"""People in photographs and videos as SKEL bodies. How, and what not to promise: docs/photo.md."""
