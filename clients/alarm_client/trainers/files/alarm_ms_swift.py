"""For `--external_plugins`: registers the reward `alarm` with ms-swift, and one per named aspect.

`ALARM_ASPECT_NAMES=factuality,relevance` adds `alarm_factuality` and `alarm_relevance`.
"""

import os

from swift.rewards import orms

from alarm_client.trainers.ms_swift import register

register(orms, [name for name in os.environ.get("ALARM_ASPECT_NAMES", "").split(",") if name])
