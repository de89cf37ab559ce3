"""python -m miniclip.doctor"""

import sys

from miniclip.doctor.main import doctor_main

sys.exit(doctor_main())
