"""`solstice.export` and `exported`: the steps and the state of a run in one file, without code."""

from solstice._exporting._export import export, export_predict
from solstice._exporting._exported import ExportedMetrics, ExportedRun, exported

__all__ = ["ExportedMetrics", "ExportedRun", "export", "export_predict", "exported"]
