"""``python -m mixersweep``, which is also how torchrun starts it."""

import sys
from pathlib import Path

if not sys.flags.safe_path and str(Path(__file__).parents[1]) != sys.path[0] == str(Path.cwd()):
    del sys.path[0]  # what lies in the working directory is no module of anybody's

from mixersweep.cli import main

sys.exit(main())
