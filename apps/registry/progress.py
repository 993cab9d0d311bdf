"""How far imports and verifications are, in words: one way for every page that shows it. It reads
what rows have, and asks the database nothing."""

from typing import TYPE_CHECKING

from django.template.defaultfilters import filesizeformat

if TYPE_CHECKING:
    from apps.registry.models import ImportJob, VerificationRun


def import_progress(job: "ImportJob") -> str:
    """Return what is being done; empty of one that has ended."""
    match job.status:
        case "uploading" if not job.size_bytes:
            return "Waits for its file"
        case "uploading":
            return f"{filesizeformat(job.n_received_bytes)} of {filesizeformat(job.size_bytes)}"
        case "queued":
            return "Waiting for a worker"
        case "running":
            return _stage(job)
    return ""


def _stage(job: "ImportJob") -> str:
    match job.stage:
        case "convert":
            return f"Converting: {job.stage_done} of {job.stage_total} tensors"
        case "unpack" | "upload":
            done, total = filesizeformat(job.stage_done), filesizeformat(job.stage_total)
            return f"{'Unpacking' if job.stage == 'unpack' else 'Sending'}: {done} of {total}"
        case "check":
            return "Checking"
    return "Reading"


def verification_progress(run: "VerificationRun") -> str:
    """As ``import_progress``; a dash of one that has ended."""
    if not run.is_open:
        return "-"
    return f"{run.get_step_display()}, {run.percent} %" if run.step else "Waits for the worker"
