"""A real OpenID provider (django-oauth-toolkit) in a process of its own: code flow with PKCE, login
page, discovery, signed tokens, userinfo and logout. None of it is ours or Authlib's."""
