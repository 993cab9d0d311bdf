"""Single sign-on by OpenID Connect. Off while none of its first three variables is set; a check of
the sign-in room refuses a part of them."""

from config.settings import env

# The provider's issuer, exactly as it names itself; the rest is discovered there.
OIDC_ISSUER = env.text("OIDC_ISSUER", "")
OIDC_CLIENT_ID = env.text("OIDC_CLIENT_ID", "")
OIDC_CLIENT_SECRET = env.text("OIDC_CLIENT_SECRET", "")
# What its button on the login page says.
OIDC_NAME = env.text("OIDC_NAME", "single sign-on")
# What is asked for beside ``openid``.
OIDC_SCOPES = env.strings("OIDC_SCOPES", default=("profile", "email"))
# The claim that lists a person's groups; empty: the provider knows none.
OIDC_GROUPS_CLAIM = env.text("OIDC_GROUPS_CLAIM", "groups")
# Groups are heard of at sign-in alone: days after which they count no more; 0 is never.
OIDC_GROUPS_KEEP_DAYS = env.integer("OIDC_GROUPS_KEEP_DAYS", default=90)
# Whose verified address is in one of these domains gets an account, whatever their groups.
OIDC_ALLOWED_DOMAINS = [each.lower() for each in env.strings("OIDC_ALLOWED_DOMAINS")]
# What the provider says of how somebody signed in that stands for our second factor.
OIDC_SECOND_FACTOR_AMR = env.strings("OIDC_SECOND_FACTOR_AMR")
OIDC_SECOND_FACTOR_ACR = env.strings("OIDC_SECOND_FACTOR_ACR")
# Off: people with single sign-on sign in by it alone; superusers by a password too.
OIDC_PASSWORD_SIGN_IN = env.boolean("OIDC_PASSWORD_SIGN_IN", default=True)
OIDC_TIMEOUT_S = env.integer("OIDC_TIMEOUT_S", default=5, minimum=1)
