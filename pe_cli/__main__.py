"""`python -m pe_cli` is the command `pe`."""

import sys

from pe_cli.main import main

sys.exit(main())
