"""How people sign in to the admin: second factor, lock-out, and how long a session lasts. Programs
use API tokens and never meet any of this."""

from datetime import timedelta
from typing import Final

from config.settings import env

# Whoever has no authenticator yet is led to enrol one and can open nothing else.
TWO_FACTOR_REQUIRED = env.boolean("TWO_FACTOR_REQUIRED", default=False)
OTP_TOTP_ISSUER: Final = "Nano-LLM Engine"
# Phones know the time. Learning a drift from whoever types slowly would move what is accepted to
# codes that are older and older, until the one that is shown is wrong.
OTP_TOTP_SYNC: Final = False

AXES_FAILURE_LIMIT = env.integer("SIGN_IN_FAILURES", default=5, minimum=1)
AXES_COOLOFF_TIME = timedelta(seconds=env.integer("SIGN_IN_LOCK_S", default=900, minimum=1))
AXES_HANDLER = "axes.handlers.database.AxesDatabaseHandler"
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"]]
AXES_RESET_ON_SUCCESS = True
# Else whoever keeps knocking would keep the door shut for ever.
AXES_RESET_COOL_OFF_ON_FAILURE_DURING_LOCKOUT = False
AXES_HTTP_RESPONSE_CODE = 429
AXES_LOCKOUT_CALLABLE = "apps.console.sign_in.locked_page"
AXES_CLIENT_IP_CALLABLE = "apps.sign_in.selectors.counted_address"
AXES_SENSITIVE_PARAMETERS = ["username", "ip_address", "code", "new_code", "csrfmiddlewaretoken"]
# The audit trail and a page of our own say it; in a log a name may be a password gone astray.
AXES_DISABLE_ACCESS_LOG = True
AXES_ENABLE_ADMIN = False
AXES_VERBOSE = False

# A session ends so long after signing in, and when it was not used for so long.
SESSION_ABSOLUTE_S = env.integer("SESSION_ABSOLUTE_S", default=7 * 86_400, minimum=60)
SESSION_IDLE_S = env.integer("SESSION_IDLE_S", default=12 * 3600, minimum=60)
SESSION_COOKIE_AGE = SESSION_ABSOLUTE_S
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"
CSRF_COOKIE_SAMESITE = "Lax"
