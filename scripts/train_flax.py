"""Train a classifier in JAX and Flax: `python scripts/train_flax.py --data dummy`, with the options
of `pe train`.
"""

import sys

from pe_cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", "--framework", "flax", *sys.argv[1:]]))
