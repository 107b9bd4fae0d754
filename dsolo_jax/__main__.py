"""`python -m dsolo_jax`, the same as the command `dsolo`."""

import sys

from dsolo_jax.cli import main

sys.exit(main())
