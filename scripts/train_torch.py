"""Train a classifier in PyTorch: `python scripts/train_torch.py --data dummy`, with the options of
`pe train`.
"""

import sys

from pe_cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", "--framework", "torch", *sys.argv[1:]]))
