from django.apps import AppConfig
from django.contrib.auth.signals import user_logged_in, user_logged_out


class SignInConfig(AppConfig):
    name = "apps.sign_in"
    label = "sign_in"
    verbose_name = "Sign-in"

    def ready(self) -> None:
        """Mark every session with its times, whoever begins it: one without them counts as over. At
        its end, end what runs in it."""
        from apps.sign_in.services.sessions import session_end, session_stamp

        user_logged_in.connect(session_stamp, dispatch_uid="sign_in.session_stamp")
        user_logged_out.connect(session_end, dispatch_uid="sign_in.session_end")
