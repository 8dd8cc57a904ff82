"""SKEL as a plain OpenSim model: text and arrays out, no file written here, OpenSim not needed.

`subject` reads one person from a SKEL model; `document` writes the .osim text; `angles` turns SKEL
angles into OpenSim's and back; `tables` writes and reads .mot, .sto, .trc and .csv; `masses` gives
every body its mass, centre and inertia; `markers` its skin markers; `osim_file` reads other
people's .osim files, whose joints `foreign_joints` evaluates; `transfer` carries motion to and from
them.

Conventions: OpenSim's ground has x forward, y up, z to the right; metres; radians but in .mot and
.csv, which are in degrees.
"""
