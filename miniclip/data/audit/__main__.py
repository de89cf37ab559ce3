"""python -m miniclip.data.audit"""

import sys

from miniclip.data.audit.command import main

sys.exit(main())
