"""`python -m dpldm` is the command `dpldm`."""

import sys

from dpldm.cli import main

if __name__ == "__main__":
    sys.exit(main())
