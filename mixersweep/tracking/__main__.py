"""``python -m mixersweep.tracking RUN_DIR``: run the process that mirrors a training's runs (``mirror``)."""

from __future__ import annotations

import sys

from mixersweep.tracking.mirror import main

sys.exit(main())
