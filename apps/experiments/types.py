"""What the room hands to others."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypedDict

from apps.judging.types import Sampling
from apps.rbac.types import Principal
from apps.routing.types import Destination

if TYPE_CHECKING:
    from apps.deployments.models import Deployment
    from apps.experiments.models import Experiment, Layer
    from apps.rollouts.models import Rollout
    from apps.routing.models import Route

SubjectKind = Literal["end_user", "token", "conversation"]

EXPERIMENTS_STAMP: Final = "experiments"
DEFAULT_LAYER: Final = "default"  # of an experiment of which nobody says another
DOORS: Final = ("rest", "websocket", "batch")
SYSTEM_MARK: Final = "{system}"  # in a prompt template: the request's own system message
MAX_VARIANTS: Final = 10
MAX_METRICS: Final = 20
MAX_AT_ONCE: Final = 6  # experiments of one request, each of another layer: their arms fit a row
MAX_CONDITIONS: Final = 100
MAX_CONVERSATION_CHARS: Final = 128


# -- in memory ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Whose request it is, as far as experiments ask. end_user: whom the client serves, as it calls
    them; conversation: as it names it. Empty where it says nothing. has_turns: it is a conversation
    in form, and no bare text to continue."""

    principal: Principal
    door: str
    end_user: str = ""
    conversation: str = ""
    has_turns: bool = True

    def subject(self, kind: SubjectKind) -> str:
        """Return the name of the subject of that kind; empty where there is none."""
        match kind:
            case "end_user":
                return self.end_user
            case "conversation":
                return self.conversation
            case "token":
                token_id = self.principal.api_token_id
                return "" if token_id is None else str(token_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Eligibility:
    """Whom an experiment lets in: who is among all that are not empty. tenants: by slug; doors:
    of ``DOORS``; end_user_prefixes: how names of end users begin; api_tokens: by id."""

    tenants: frozenset[str] = frozenset()
    doors: frozenset[str] = frozenset()
    end_user_prefixes: tuple[str, ...] = ()
    api_tokens: frozenset[int] = frozenset()

    @classmethod
    def read(cls, said: Mapping[str, Any]) -> Self:
        """Return what the field of an experiment says, which is lists by the names of this class.

        Raises:
            ValueError: whose text is for people.
        """
        if not isinstance(said, Mapping):
            raise ValueError("Give conditions by their names.")
        known = ("tenants", "doors", "end_user_prefixes", "api_tokens")
        for name, values in said.items():
            if name not in known:
                raise ValueError(f"{str(name)[:40]!r} is none of {', '.join(known)}.")
            kind = int if name == "api_tokens" else str
            if not isinstance(values, list) or not all(type(each) is kind for each in values):
                raise ValueError(f"{name} must be a list of {_PLURALS[kind]}.")
            if len(values) > MAX_CONDITIONS:
                raise ValueError(f"{name} may have {MAX_CONDITIONS} entries at most.")
            if "" in values:
                raise ValueError(f"{name} has an empty entry.")
        if strange := sorted(set(said.get("doors", ())) - set(DOORS)):
            raise ValueError(f"{strange[0][:40]!r} is none of the doors {', '.join(DOORS)}.")
        return cls(
            tenants=frozenset(said.get("tenants", ())),
            doors=frozenset(said.get("doors", ())),
            end_user_prefixes=tuple(said.get("end_user_prefixes", ())),
            api_tokens=frozenset(said.get("api_tokens", ())),
        )

    def admits(self, caller: Caller) -> bool:
        principal = caller.principal
        return (
            (not self.tenants or principal.tenant_slug in self.tenants)
            and (not self.doors or caller.door in self.doors)
            and (not self.api_tokens or principal.api_token_id in self.api_tokens)
            and (not self.end_user_prefixes or caller.end_user.startswith(self.end_user_prefixes))
        )


_PLURALS: Final = {int: "whole numbers", str: "texts"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """What a row of the ledger says of one experiment. subject: as ``subject_digest`` has it."""

    experiment_id: int
    variant_id: int
    subject: str

    def __str__(self) -> str:
        return f"e{self.experiment_id}.v{self.variant_id}.{self.subject}"


def arms_read(text: str) -> tuple[Arm, ...]:
    """Return what the ledger's column ``experiment_arm`` says; raises ValueError."""
    return tuple(_arm_read(each) for each in text.split(",")) if text else ()


def _arm_read(text: str) -> Arm:
    experiment, variant, subject = text.split(".")
    if not (experiment[:1] == "e" and variant[:1] == "v" and subject):
        raise ValueError(f"{text[:60]!r} names no arm")
    return Arm(experiment_id=int(experiment[1:]), variant_id=int(variant[1:]), subject=subject)


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolment:
    """What experiments do to one request. destinations: where it goes in the place of its route's
    own; None where no experiment says; empty where one does and what it says is not there.
    parameters: what holds where the request says nothing, before the route's defaults.
    prompt_template: empty where none is set. judges: who may take its answer to score it."""

    arms: tuple[Arm, ...]
    destinations: tuple[Destination, ...] | None = None
    parameters: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    prompt_template: str = ""
    judges: tuple[Sampling, ...] = ()

    @property
    def said(self) -> str:
        """For the ledger, 250 characters at most."""
        return ",".join(map(str, self.arms))


# -- what services take and give ---------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantSpec:
    """An arm that an experiment shall have. What it leaves empty is as the route has it."""

    name: str
    weight: int = 50
    is_control: bool = False
    deployment: "Deployment | None" = None
    other_route: "Route | None" = None
    parameters: Mapping[str, float] = field(default_factory=dict)
    prompt_template: str = ""

    def __str__(self) -> str:
        parts = [f"{self.name}={self.weight}"]
        if self.is_control:
            parts.append("control")
        if self.deployment is not None:
            parts.append(f"deployment={self.deployment}")
        if self.other_route is not None:
            parts.append(f"route={self.other_route}")
        parts += [f"{name}={value}" for name, value in sorted(self.parameters.items())]
        if self.prompt_template:
            parts.append(f"template of {len(self.prompt_template)} characters")
        return " ".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricSpec:
    """What an experiment shall be judged by. role: primary, secondary or guardrail; better: higher
    or lower; tolerance: of a guardrail, the relative worsening that stops an arm."""

    metric: str
    role: str = "secondary"
    better: str = "lower"
    tolerance: float = 0.1

    def __str__(self) -> str:
        word = f"{self.role} {self.metric}, {self.better} is better"
        return f"{word}, {self.tolerance:g} worse at most" if self.role == "guardrail" else word


class ExperimentFields(TypedDict, total=False):
    """What a person may set on an experiment, by the names of its columns."""

    name: str
    hypothesis: str
    route: "Route"
    layer: "Layer"
    share_percent: float
    subject: str
    eligibility: Mapping[str, Any]
    alpha: float
    power: float
    min_effect: float
    planned_units: int
    pre_period_days: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Promotion:
    """What became of a winner. rollout: None where it came without a version of its own."""

    experiment: "Experiment"
    rollout: "Rollout | None"
