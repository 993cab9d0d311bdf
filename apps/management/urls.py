"""What the lean handler in config/inference.py resolves: what is under /v1/manage/."""

from django.urls import path

from apps.management.rest.deployments import (
    DeploymentListView,
    DeploymentView,
    DrainView,
    RestartView,
    StartView,
    StopView,
)
from apps.management.rest.experiments import (
    ExperimentListView,
    ExperimentView,
    PromoteView,
    ResultsFileView,
    ResultsView,
    WeightsView,
)
from apps.management.rest.experiments import StartView as ExperimentStartView
from apps.management.rest.experiments import StopView as ExperimentStopView
from apps.management.rest.imports import (
    ImportCancelView,
    ImportFileView,
    ImportListView,
    ImportView,
)
from apps.management.rest.judges import JudgeListView, JudgeView
from apps.management.rest.models import (
    CompareView,
    ManagedModelListView,
    ManagedModelView,
    StageView,
    VersionListView,
    VersionView,
)
from apps.management.rest.nodes import NodeListView, NodeView
from apps.management.rest.rollouts import (
    RolloutAbortView,
    RolloutApproveView,
    RolloutListView,
    RolloutPauseView,
    RolloutResumeView,
    RolloutView,
)
from apps.management.rest.routes import RouteListView, RouteView
from apps.management.rest.verifications import (
    VerificationCancelView,
    VerificationListView,
    VerificationView,
)

_MODEL = "v1/manage/models/<str:name>"
_VERSION = f"{_MODEL}/versions/<str:number>"
_IMPORT = "v1/manage/imports/<str:import_id>"
_VERIFICATION = "v1/manage/verifications/<str:verification_id>"
_EXPERIMENT = "v1/manage/experiments/<str:name>"
_ROLLOUT = "v1/manage/rollouts/<str:rollout_id>"
_DEPLOYMENT = "v1/manage/deployments/<str:name>"

urlpatterns = [
    path("v1/manage/models", ManagedModelListView.as_view()),
    path(_MODEL, ManagedModelView.as_view()),
    path(f"{_MODEL}/versions", VersionListView.as_view()),
    path(_VERSION, VersionView.as_view()),
    path(f"{_VERSION}/stage", StageView.as_view()),
    path(f"{_VERSION}/compare", CompareView.as_view()),
    path("v1/manage/imports", ImportListView.as_view()),
    path(_IMPORT, ImportView.as_view()),
    path(f"{_IMPORT}/file", ImportFileView.as_view()),
    path(f"{_IMPORT}/cancel", ImportCancelView.as_view()),
    path("v1/manage/verifications", VerificationListView.as_view()),
    path(_VERIFICATION, VerificationView.as_view()),
    path(f"{_VERIFICATION}/cancel", VerificationCancelView.as_view()),
    path("v1/manage/deployments", DeploymentListView.as_view()),
    path(_DEPLOYMENT, DeploymentView.as_view()),
    path(f"{_DEPLOYMENT}/start", StartView.as_view()),
    path(f"{_DEPLOYMENT}/drain", DrainView.as_view()),
    path(f"{_DEPLOYMENT}/stop", StopView.as_view()),
    path(f"{_DEPLOYMENT}/restart", RestartView.as_view()),
    path("v1/manage/nodes", NodeListView.as_view()),
    path("v1/manage/nodes/<str:name>", NodeView.as_view()),
    path("v1/manage/routes", RouteListView.as_view()),
    path("v1/manage/routes/<path:name>", RouteView.as_view()),
    path("v1/manage/experiments", ExperimentListView.as_view()),
    path(_EXPERIMENT, ExperimentView.as_view()),
    path(f"{_EXPERIMENT}/start", ExperimentStartView.as_view()),
    path(f"{_EXPERIMENT}/stop", ExperimentStopView.as_view()),
    path(f"{_EXPERIMENT}/weights", WeightsView.as_view()),
    path(f"{_EXPERIMENT}/promote", PromoteView.as_view()),
    path(f"{_EXPERIMENT}/results", ResultsView.as_view()),
    path(f"{_EXPERIMENT}/results.csv", ResultsFileView.as_view()),
    path("v1/manage/judges", JudgeListView.as_view()),
    path("v1/manage/judges/<str:name>", JudgeView.as_view()),
    path("v1/manage/rollouts", RolloutListView.as_view()),
    path(_ROLLOUT, RolloutView.as_view()),
    path(f"{_ROLLOUT}/approve", RolloutApproveView.as_view()),
    path(f"{_ROLLOUT}/pause", RolloutPauseView.as_view()),
    path(f"{_ROLLOUT}/resume", RolloutResumeView.as_view()),
    path(f"{_ROLLOUT}/abort", RolloutAbortView.as_view()),
]
