"""The admin site that operators see."""

from unfold.sites import UnfoldAdminSite


class ConsoleAdminSite(UnfoldAdminSite):
    pass
