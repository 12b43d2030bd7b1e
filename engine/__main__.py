"""`python -m dia_engine` is the command `dia-engine`."""

import sys

from .cli import main

sys.exit(main())
