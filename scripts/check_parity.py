"""Compare the reference, PyTorch and Flax: `python scripts/check_parity.py`, with the options of
`pe parity`.
"""

import sys

from pe_cli.main import main

if __name__ == "__main__":
    sys.exit(main(["parity", *sys.argv[1:]]))
