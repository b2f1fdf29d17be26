"""Looking inside finished networks: what ``mixersweep analyze`` does, a module a verb.

Each verb reads run directories, computes plain numbers, and leaves ``<verb>.json``, a table and a figure.
"""
