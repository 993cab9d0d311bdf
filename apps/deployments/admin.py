"""Deployments: what should run, and at a glance what does. Every write is one service call."""

from typing import Any

from django.contrib import admin, messages
from django.contrib.humanize.templatetags.humanize import naturaltime
from django.db import models
from django.db.models import Prefetch
from django.http import HttpRequest
from django.template.defaultfilters import filesizeformat
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

from apps.audit.selectors import actor_of
from apps.core.access import access_in
from apps.core.admin import ReadOnlyAdmin, ReadOnlyInline, ServiceModelAdmin, action, display
from apps.core.scoped_admin import GivenInline, ObjectScoped
from apps.deployments.forms import RemoteServerForm
from apps.deployments.models import (
    Deployment,
    DeploymentUserObjectPermission,
    RemoteServer,
    Replica,
)
from apps.deployments.placing import needs_text
from apps.deployments.selectors import live_state, on_devices
from apps.deployments.services import (
    deployment_create,
    deployment_delete,
    deployment_drain,
    deployment_restart,
    deployment_start,
    deployment_stop,
    deployment_update,
    remote_server_create,
    remote_server_delete,
    remote_server_update,
)
from apps.deployments.types import LIVE_STATE_TONES, DeploymentFields, RemoteServerFields
from apps.engines.types import STATE_LABELS
from apps.rbac.selectors import person_of
from apps.rbac.services import object_permissions_change


class ReplicaInline(ReadOnlyInline):
    """What the agent made of the deployment."""

    model = Replica
    fields = ("index", "engine_process", "state", "files", "on", "memory", "last_error")
    readonly_fields = fields

    def get_queryset(self, request: HttpRequest) -> models.QuerySet[Replica]:
        rows: models.QuerySet[Replica] = super().get_queryset(request)
        return rows.select_related("engine_process", "deployment").prefetch_related(on_devices())

    @display(description="Devices")
    def on(self, replica: Replica) -> str:
        return replica.devices_said or "-"

    @display(description="State", label=STATE_LABELS)
    def state(self, replica: Replica) -> str:
        return replica.engine_process.state_said

    @display(description="Files")
    def files(self, replica: Replica) -> str:
        return replica.engine_process.fetch_said or "-"

    @display(description="Last error")
    def last_error(self, replica: Replica) -> str:
        return replica.refusal or replica.engine_process.last_error or "-"

    @display(description="Memory, of the estimate")
    def memory(self, replica: Replica) -> str:
        if replica.estimated_bytes is None:
            return "-"
        used = replica.engine_process.stats.get("rss_bytes")
        estimated = filesizeformat(replica.estimated_bytes)
        return f"{filesizeformat(used)} of {estimated}" if used else f"? of {estimated}"


class DeploymentGivenInline(GivenInline):
    model = DeploymentUserObjectPermission


@admin.register(Deployment)
class DeploymentAdmin(ObjectScoped, ServiceModelAdmin):
    list_display = (
        "name",
        "serves",
        "desired",
        "live",
        "replicas_ready",
        "queue",
        "rate",
        "memory",
        "restarts",
    )
    list_filter = ("desired_state", "backend")
    list_select_related = ("model_version__model", "remote")
    search_fields = ("name", "model_version__model__name", "remote__name", "remote_model")
    ordering = ("name",)
    sortable_by = ("name",)
    autocomplete_fields = ("model_version", "draft_version", "remote")
    actions = ("start_selected", "drain_selected", "stop_selected", "restart_selected")
    fieldsets = (
        (
            None,
            {
                "fields": (
                    ("name", "model_version"),
                    ("desired_state", "max_model_len"),
                )
            },
        ),
        (
            "Replicas",
            {
                "fields": (
                    ("min_replicas", "max_replicas", "target_wait_ms"),
                    ("replicas_now", "memory_needed"),
                )
            },
        ),
        (
            "Remote server",
            {
                "description": "In place of a model version: a model that is served elsewhere.",
                "fields": ("remote", ("remote_model", "remote_task")),
            },
        ),
        (
            "Engine",
            {
                "description": "A change of these replaces the running engines.",
                "fields": (
                    ("backend", "device_class"),
                    ("dtype", "quantization"),
                    ("kv_cache_tokens", "kv_cache_dtype"),
                    ("max_sequences", "max_batched_tokens"),
                ),
            },
        ),
        (
            "Guesses, attention, several devices, sleep, and caches below the GPU",
            {
                "classes": ("collapse",),
                "description": "Most leave these as they are; all but guesses and the draft model "
                "are for GPUs. A change of these replaces the running engines.",
                # One a line: only so is the section open where one is wrong.
                "fields": (
                    "speculation",
                    "draft_version",
                    "attention",
                    "tensor_parallel",
                    "sleep_after_s",
                    "host_kv_cache_bytes",
                    "disk_kv_cache_bytes",
                ),
            },
        ),
    )
    inlines = (ReplicaInline, DeploymentGivenInline)
    change_form_outer_before_template = "console/watch.html"

    class Media:
        js = ("console/live.js",)

    def get_queryset(self, request: HttpRequest) -> models.QuerySet[Deployment]:
        replicas = Replica.objects.select_related("engine_process")
        return (
            super().get_queryset(request).prefetch_related(Prefetch("replicas", queryset=replicas))
        )

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        fixed: tuple[str, ...] = ("replicas_now", "memory_needed", *(("name",) if obj else ()))
        # Whose key a deployment uses is not for someone who was given only that deployment.
        if not access_in(request).may("deployments.view_remoteserver"):
            fixed += ("remote", "remote_model", "remote_task")
        return fixed

    def service_save(
        self, request: HttpRequest, obj: Any, *, form: Any, change: bool
    ) -> models.Model:
        given = {name: getattr(obj, name) for name in DeploymentFields.__annotations__}
        fields = DeploymentFields(**given)  # type: ignore[typeddict-item]
        if change:
            return deployment_update(deployment=obj, actor=actor_of(request), **fields)
        return deployment_create(actor=actor_of(request), **fields)

    def save_formset(self, request: HttpRequest, form: Any, formset: Any, change: bool) -> None:
        if formset.model is not DeploymentUserObjectPermission:
            super().save_formset(request, form, formset, change)
        else:
            added = formset.save(commit=False)
            object_permissions_change(
                obj=form.instance,
                added=added,
                removed=formset.deleted_objects,
                by=person_of(request),
                actor=actor_of(request),
            )

    def service_delete(self, request: HttpRequest, obj: Any) -> None:
        deployment_delete(deployment=obj, actor=actor_of(request))

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        """Replicas go with their deployment; that nobody deletes one by hand does not keep it."""
        deleted, counts, lacking, protected = super().get_deleted_objects(objs, request)
        return deleted, counts, lacking - {Replica._meta.verbose_name}, protected

    @display(description="Model", ordering="model_version")
    def serves(self, deployment: Deployment) -> str:
        return deployment.model_name

    @display(
        description="Desired",
        label={"Running": "primary", "Draining": "warning", "Stopped": ""},
        ordering="desired_state",
    )
    def desired(self, deployment: Deployment) -> str:
        return deployment.get_desired_state_display()

    @display(description="Live")
    def live(self, deployment: Deployment) -> SafeString:
        word = live_state(deployment).word
        return format_html(
            '<span class="co-badge" data-live="d{pk}.state" data-live-tone="d{pk}.state" '
            'data-tone="{tone}">{word}</span>',
            pk=deployment.pk,
            tone=LIVE_STATE_TONES[word],
            word=word,
        )

    @display(description="Replicas ready")
    def replicas_ready(self, deployment: Deployment) -> SafeString:
        state = live_state(deployment)
        return _renewed(deployment, "replicas", f"{state.n_ready} of {state.n_replicas}")

    @display(description="Replicas now")
    def replicas_now(self, deployment: Deployment) -> str:
        if deployment.scaled_at is None:
            return str(deployment.n_replicas)
        when = naturaltime(deployment.scaled_at)
        return f"{deployment.n_replicas}, since {when}. {deployment.scaled_because}"

    @display(description="Memory of a replica")
    def memory_needed(self, deployment: Deployment) -> str:
        return needs_text(deployment, now=timezone.now())

    @display(description="Running / waiting")
    def queue(self, deployment: Deployment) -> SafeString:
        n_running, n_waiting = self._sum(deployment, "n_running", "n_waiting")
        return _renewed(deployment, "queue", f"{n_running} / {n_waiting}")

    @display(description="Tokens/s")
    def rate(self, deployment: Deployment) -> SafeString:
        return _renewed(deployment, "rate", "-")

    @display(description="Memory")
    def memory(self, deployment: Deployment) -> SafeString:
        (n_bytes,) = self._sum(deployment, "rss_bytes")
        return _renewed(deployment, "memory", filesizeformat(n_bytes) if n_bytes else "-")

    @display(description="Restarts")
    def restarts(self, deployment: Deployment) -> SafeString:
        return _renewed(deployment, "restarts", str(live_state(deployment).n_restarts))

    def _sum(self, deployment: Deployment, *names: str) -> list[int]:
        stats = [replica.engine_process.stats for replica in deployment.replicas.all()]
        return [sum(each.get(name, 0) for each in stats) for name in names]

    @action(description="Start the selected deployments", permissions=["change"])
    def start_selected(self, request: HttpRequest, queryset: Any) -> None:
        for deployment in self.changeable(request, queryset):
            deployment_start(deployment=deployment, actor=actor_of(request))
        messages.success(request, "They are told to run.")

    @action(description="Drain the selected deployments", permissions=["change"])
    def drain_selected(self, request: HttpRequest, queryset: Any) -> None:
        for deployment in self.changeable(request, queryset):
            deployment_drain(deployment=deployment, actor=actor_of(request))
        messages.success(request, "They finish what they have, then stop.")

    @action(description="Stop the selected deployments", permissions=["change"])
    def stop_selected(self, request: HttpRequest, queryset: Any) -> None:
        for deployment in self.changeable(request, queryset):
            deployment_stop(deployment=deployment, actor=actor_of(request))
        messages.success(request, "They stop, and cut off what does not end soon.")

    @action(description="Restart the selected deployments", permissions=["change"])
    def restart_selected(self, request: HttpRequest, queryset: Any) -> None:
        for deployment in self.changeable(request, queryset):
            deployment_restart(deployment=deployment, actor=actor_of(request))
        messages.success(request, "Their engines drain and are replaced.")


def _renewed(deployment: Deployment, name: str, text: str) -> SafeString:
    """What the page renews by itself."""
    return format_html('<span data-live="d{}.{}">{}</span>', deployment.pk, name, text)


@admin.register(RemoteServer)
class RemoteServerAdmin(ServiceModelAdmin):
    """Servers that are not ours. Their keys can be written here, and read nowhere."""

    form = RemoteServerForm
    list_display = ("name", "base_url", "key", "n_deployments", "updated_at")
    search_fields = ("name", "base_url")
    ordering = ("name",)
    sortable_by = ("name", "updated_at")
    fieldsets = (
        (None, {"fields": ("name", "base_url", ("api_key", "takes_key_away"), "ca_file")}),
        (
            "Bounds",
            {
                "fields": (
                    "max_concurrency",
                    "connect_timeout_s",
                    "first_byte_timeout_s",
                    "idle_timeout_s",
                )
            },
        ),
    )

    def get_queryset(self, request: HttpRequest) -> models.QuerySet[RemoteServer]:
        rows: models.QuerySet[RemoteServer] = super().get_queryset(request)
        return rows.annotate(n_leading=models.Count("deployments"))

    def service_save(
        self, request: HttpRequest, obj: Any, *, form: Any, change: bool
    ) -> models.Model:
        fields = RemoteServerFields(
            name=obj.name,
            base_url=obj.base_url,
            ca_file=obj.ca_file,
            max_concurrency=obj.max_concurrency,
            connect_timeout_s=obj.connect_timeout_s,
            first_byte_timeout_s=obj.first_byte_timeout_s,
            idle_timeout_s=obj.idle_timeout_s,
        )
        actor, api_key = actor_of(request), form.new_key
        if change:
            return remote_server_update(server=obj, actor=actor, api_key=api_key, **fields)
        return remote_server_create(actor=actor, api_key=api_key or "", **fields)

    def service_delete(self, request: HttpRequest, obj: Any) -> None:
        remote_server_delete(server=obj, actor=actor_of(request))

    @display(description="Key", label={"Kept": "success", "None": ""})
    def key(self, server: RemoteServer) -> str:
        return "Kept" if server.api_key_sealed else "None"

    @display(description="Deployments")
    def n_deployments(self, server: Any) -> int:
        return int(server.n_leading)


@admin.register(Replica)
class ReplicaAdmin(ReadOnlyAdmin):
    list_display = ("name", "state", "on", "engine_process", "created_at")
    list_select_related = ("deployment", "engine_process")
    list_filter = ("engine_process__state",)
    search_fields = ("deployment__name", "engine_process__name")
    ordering = ("deployment__name", "index")
    sortable_by = ()

    def get_queryset(self, request: HttpRequest) -> models.QuerySet[Replica]:
        rows: models.QuerySet[Replica] = super().get_queryset(request)
        return rows.prefetch_related(on_devices())

    @display(description="Devices")
    def on(self, replica: Replica) -> str:
        return replica.devices_said or "-"

    @display(description="Replica")
    def name(self, replica: Replica) -> str:
        return str(replica)

    @display(description="State", label=STATE_LABELS)
    def state(self, replica: Replica) -> str:
        return replica.engine_process.state_said
