"""``python -m pytl``: the command line without an installed script."""

import sys

from pytl.cli import main

sys.exit(main())
