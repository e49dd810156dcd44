"""Which of the paper's assumptions hold for a model: each measured, none assumed.

Our definition throughout: the paper states assumptions in words and asymptotics, not thresholds.
"""

from torch_qsgd.auditing.conduct import audit
from torch_qsgd.auditing.report import AuditReport
from torch_qsgd.auditing.thresholds import Thresholds

__all__ = ["AuditReport", "Thresholds", "audit"]
