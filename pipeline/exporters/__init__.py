"""Datasets as files for other programs: one module a format, each an `Exporter`.

`hmr-skel export` puts the table of formats together (`stages/export_formats.py`): those of this
package and those that need to draw, which live in `stages`. Nothing registers itself by being
imported.
"""
