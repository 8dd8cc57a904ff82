"""A self-contained page that plays bodies: `encoding` packs surfaces, `page` writes the file.

`bundle.js` is made from `tools/viewer/` (three.js and uPlot, both MIT, bundled; see NOTICE).
"""
