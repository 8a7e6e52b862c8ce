"""Reading and writing files of users and other programs: paths, JSON, images, and complete writes. No JAX.

Every program and every builder opens the user's files through this package, so that a rule holds everywhere.
"""
