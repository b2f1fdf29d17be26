"""Analyse networks: the verbs of ``mixersweep analyze``, one module each.

Each verb reads run directories, or builds networks from settings where it needs no trained ones. It computes plain
numbers and writes ``<verb>.json``, a table and a figure.
"""
