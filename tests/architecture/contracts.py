"""A contract type for import-linter: one app sees another only through its faces."""

from typing import Any

from importlinter import Contract, ContractCheck, fields, output


class AppFacesContract(Contract):
    """faces: modules of an app that other apps may import. open_apps: apps without such a bound.
    open_modules: single modules without it. Their submodules go with them."""

    type_name = "app_faces"

    container = fields.StringField()
    faces = fields.SetField(subfield=fields.StringField())
    open_apps = fields.SetField(subfield=fields.StringField(), required=False)
    open_modules = fields.SetField(subfield=fields.StringField(), required=False)

    def check(self, graph: Any, verbose: bool) -> ContractCheck:
        breaches = []
        for importer in graph.modules:
            for imported in graph.find_modules_directly_imported_by(importer):
                if not self._is_allowed(importer, imported):
                    breaches.append((importer, imported))
        return ContractCheck(kept=not breaches, metadata={"breaches": sorted(breaches)})

    def render_broken_contract(self, check: ContractCheck) -> None:
        for importer, imported in check.metadata["breaches"]:
            output.print_error(f"{importer} imports {imported}, which is no face of its app")

    def _is_allowed(self, importer: str, imported: str) -> bool:
        target = self._parts(imported)
        source = self._parts(importer)
        if target is None or source is None or target[0] == source[0]:
            return True
        if target[0] in (self.open_apps or ()):
            return True
        if any(_is_in(imported, module) for module in self.open_modules or ()):
            return True
        return len(target) > 1 and target[1] in self.faces

    def _parts(self, module: str) -> list[str] | None:
        """Return app and the path in it; None for what is in no app."""
        head, _, rest = module.partition(".")
        return rest.split(".") if head == self.container and rest else None


def _is_in(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")
