"""Results as a file for spreadsheets: the same lines through every door."""

import csv
import io

from apps.core.wording import cell_text
from apps.experiments.results import ExperimentResults
from apps.experiments.results_table import csv_lines


def results_csv(results: ExperimentResults) -> str:
    """Return the whole file. Texts that a spreadsheet would run are marked as texts."""
    file = io.StringIO()
    writer = csv.writer(file)
    for line in csv_lines(results):
        writer.writerow([cell_text(each) if isinstance(each, str) else each for each in line])
    return file.getvalue()
