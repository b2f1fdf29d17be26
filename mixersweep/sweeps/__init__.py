"""Sweeps over many runs: expanding a command into runs (``expand``) and executing them (``sweeper``, ``launchers``)."""
