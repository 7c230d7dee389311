"""python -m recon_core.cli"""

import sys

from recon_core.cli.main import main

sys.exit(main())
