from typing import Any

from django.db import migrations


def devices_copy(apps: Any, schema_editor: Any) -> None:
    """A replica had one device, or none."""
    replicas = apps.get_model('deployments', 'Replica')
    through = replicas.devices.through
    through.objects.bulk_create(
        [
            through(replica_id=replica_id, device_id=device_id)
            for replica_id, device_id in replicas.objects.exclude(device=None).values_list(
                'pk', 'device_id'
            )
        ],
        ignore_conflicts=True,
    )


def device_copy(apps: Any, schema_editor: Any) -> None:
    """The first of several: its engine is placed anew."""
    replicas = apps.get_model('deployments', 'Replica')
    for replica in replicas.objects.all():
        replicas.objects.filter(pk=replica.pk).update(device=replica.devices.first())


class Migration(migrations.Migration):

    dependencies = [
        ('deployments', '0010_several_devices'),
    ]

    operations = [
        migrations.RunPython(devices_copy, device_copy),
    ]
