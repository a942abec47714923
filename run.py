#!/usr/bin/env python
"""Pretrain, fine-tune and evaluate SimCLR: `python run.py --help`."""

import sys

from simclr_tf.cli import main

if __name__ == "__main__":
    sys.exit(main())
