"""The public Python functions, for notebooks: thin layers over what the command line calls.

``mixersweep/__init__.py`` exports them and imports a module here when one of its names is first used.
"""
