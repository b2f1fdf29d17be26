"""Looking inside networks: what ``mixersweep analyze`` does, a module a verb.

Each verb reads run directories, or builds networks from settings where it needs no trained ones; it computes plain
numbers, and leaves ``<verb>.json``, a table and a figure.
"""
