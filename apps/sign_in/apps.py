from django.apps import AppConfig
from django.contrib.auth.signals import user_logged_in, user_logged_out
from django.core.checks import register


class SignInConfig(AppConfig):
    name = "apps.sign_in"
    label = "sign_in"
    verbose_name = "Sign-in"

    def ready(self) -> None:
        """Mark every session with its times, whoever begins it: one without them counts as over. At
        its end, end what runs in it. And have the settings looked at."""
        from apps.sign_in import pruning
        from apps.sign_in.checks import single_sign_on_check
        from apps.sign_in.services.sessions import session_end, session_stamp

        register(single_sign_on_check)
        pruning.register()

        user_logged_in.connect(session_stamp, dispatch_uid="sign_in.session_stamp")
        user_logged_out.connect(session_end, dispatch_uid="sign_in.session_end")
