"""Measure networks, and see what they do.

quickstart       python evaluate.py run --ckpt runs/quickstart --protocol quickstart --out runs/q
your pictures    python evaluate.py run --ckpt runs/small --data FOLDER --protocol denoise-25
                 --out runs/mine                              (one line; also a .tar, and --resume)
two networks     python evaluate.py run --ckpt ours=a.safetensors --ckpt ffdnet=b.safetensors
                 --data D --protocol denoise --out runs/both  (one line)
given outputs    python evaluate.py compare --pred DIR --target DIR --protocol pixels --out runs/c
protocols        python evaluate.py protocols [NAME]; python evaluate.py run --help lists options
"""

import sys

from lit_restore.cli.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
