"""What the playground shows: a member, and a deployment that is ready."""

import pytest

from apps.deployments.models import Deployment
from apps.rbac.models import User
from apps.tenants.models import Membership
from tests.factories import (
    DeploymentFactory,
    EngineProcessFactory,
    MembershipFactory,
    ModelVersionFactory,
    ReplicaFactory,
    RouteFactory,
)


@pytest.fixture
def member(admin_user: User) -> Membership:
    """Who belongs to no tenant can chat with nothing."""
    return MembershipFactory(user=admin_user, role=None)


@pytest.fixture
def deployment(member: Membership) -> Deployment:
    version = ModelVersionFactory(context_length=8192)
    deployment = DeploymentFactory(model_version=version, n_replicas=1)
    RouteFactory(name="ready-model", deployment=deployment)
    ReplicaFactory(deployment=deployment, index=0, engine_process=EngineProcessFactory(ready=True))
    return deployment
