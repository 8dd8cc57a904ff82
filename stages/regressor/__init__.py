"""The image-to-SKEL regressor: network, losses, data, training, prediction, evaluation.

Source: reference/regressor.md; quoted below as "4.2" and so on.
"""
