"""Many runs: what an invocation means (``expand``), and carrying it out (``sweeper``, ``launchers``)."""
