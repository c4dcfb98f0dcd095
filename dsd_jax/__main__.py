"""`python -m dsd_jax` is the command `dsd`."""

import sys

from dsd_jax.cli import main

sys.exit(main())
