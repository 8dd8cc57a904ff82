"""The image-to-SKEL regressor: network, losses, data, training, prediction, evaluation.

Source: docs/reference/regressor.md, quoted below by its anchors.
"""
