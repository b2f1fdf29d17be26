"""The front door in Python: what a notebook needs of the program, each a thin layer over what the command calls.

``mixersweep/__init__.py`` names all of it and imports a module here when one of its names is first used.
"""
