"""`python -m pe_core` is the command `pe`."""

import sys

from pe_core.cli import main

sys.exit(main())
