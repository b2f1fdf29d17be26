"""``python -m mixersweep``, which is also how torchrun starts it."""

import sys

from mixersweep.cli import main

sys.exit(main())
