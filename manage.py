#!/usr/bin/env python
"""Django's command line. Puts ./platform on the path, so that ``config`` imports."""

import os
import sys
from pathlib import Path


def main() -> None:
    sys.path.insert(1, str(Path(__file__).resolve().parent / "platform"))
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings.development")
    import django
    from django.core.exceptions import ImproperlyConfigured
    from django.core.management import execute_from_command_line

    from apps.core.tenancy import every_tenant
    from config.loading import loading

    try:
        with loading():
            django.setup()
        with every_tenant("whoever runs commands runs the platform"):
            execute_from_command_line(sys.argv)
    except ImproperlyConfigured as error:
        sys.exit(f"manage.py: {error}")


if __name__ == "__main__":
    main()
