"""`python -m hnf_offline` is `hnf`."""

from __future__ import annotations

import sys

from hnf_offline.cli import main

if __name__ == "__main__":
    sys.exit(main())
