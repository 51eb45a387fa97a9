"""`python -m deployments.docs FOLDER`: put the pages together, of which `make docs` then makes the site."""

from __future__ import annotations

import sys
from pathlib import Path

from deployments.docs.site import put_together

if __name__ == "__main__":
    put_together(Path(sys.argv[1]))
