from django.apps import AppConfig
from django.contrib.auth.signals import user_logged_in


class SignInConfig(AppConfig):
    name = "apps.sign_in"
    label = "sign_in"
    verbose_name = "Sign-in"

    def ready(self) -> None:
        """Mark every session with its times, whoever begins it: one without them counts as over."""
        from apps.sign_in.services.sessions import session_stamp

        user_logged_in.connect(session_stamp, dispatch_uid="sign_in.session_stamp")
