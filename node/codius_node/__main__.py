"""`python -m codius_node`."""

import sys

from codius_node.cli import main

sys.exit(main())
