from typing import Any

from django.db import migrations


def drift_forget(apps: Any, schema_editor: Any) -> None:
    """What was learnt from people who typed slowly (see OTP_TOTP_SYNC)."""
    apps.get_model("otp_totp", "TOTPDevice").objects.exclude(drift=0).update(drift=0)


class Migration(migrations.Migration):
    dependencies = [
        ("otp_totp", "0003_add_timestamps"),
        ("sign_in", "0002_provider_identity"),
    ]

    operations = [migrations.RunPython(drift_forget, migrations.RunPython.noop)]
