"""``python -m experiments.machinery.verbatim``."""

import sys

from experiments.machinery.verbatim.runner import main

sys.exit(main())
