"""Rows for tests. A factory writes a row as a service would have left it, without audit event."""

from tests.factories.access import (
    ApiTokenFactory,
    EndUserFactory,
    GroupMappingFactory,
    MembershipFactory,
    PlanFactory,
    RoleFactory,
    TenantFactory,
    TokenFamilyFactory,
    UserFactory,
)
from tests.factories.audit import AuditEventFactory
from tests.factories.batches import BatchFactory, BatchItemFactory, UploadedFileFactory
from tests.factories.deployments import (
    DeploymentFactory,
    EngineProcessFactory,
    RemoteServerFactory,
    ReplicaFactory,
)
from tests.factories.engines import DeviceFactory, NodeFactory
from tests.factories.experiments import (
    AssignmentFactory,
    ExperimentFactory,
    ExperimentMetricFactory,
    LayerFactory,
    VariantFactory,
)
from tests.factories.feedback import MetricEventFactory
from tests.factories.journals import EngineJournalFactory, JournalEntryFactory
from tests.factories.judging import AnswerSampleFactory, JudgeFactory
from tests.factories.metering import UsageRecordFactory
from tests.factories.quarantine import QuarantinedRequestFactory
from tests.factories.registry import (
    ImportJobFactory,
    ModelVersionFactory,
    RegisteredModelFactory,
    VerificationRunFactory,
)
from tests.factories.rollouts import RolloutFactory
from tests.factories.routing import RouteFactory, RouteTargetFactory
from tests.factories.samples import EngineSampleFactory
from tests.factories.sign_in import FailedSignInFactory

__all__ = [
    "AnswerSampleFactory",
    "ApiTokenFactory",
    "AssignmentFactory",
    "AuditEventFactory",
    "BatchFactory",
    "BatchItemFactory",
    "DeploymentFactory",
    "DeviceFactory",
    "EndUserFactory",
    "EngineJournalFactory",
    "EngineProcessFactory",
    "EngineSampleFactory",
    "ExperimentFactory",
    "ExperimentMetricFactory",
    "FailedSignInFactory",
    "GroupMappingFactory",
    "ImportJobFactory",
    "JournalEntryFactory",
    "JudgeFactory",
    "LayerFactory",
    "MembershipFactory",
    "MetricEventFactory",
    "ModelVersionFactory",
    "NodeFactory",
    "PlanFactory",
    "QuarantinedRequestFactory",
    "RegisteredModelFactory",
    "RemoteServerFactory",
    "ReplicaFactory",
    "RoleFactory",
    "RolloutFactory",
    "RouteFactory",
    "RouteTargetFactory",
    "TenantFactory",
    "TokenFamilyFactory",
    "UploadedFileFactory",
    "UsageRecordFactory",
    "UserFactory",
    "VariantFactory",
    "VerificationRunFactory",
]
