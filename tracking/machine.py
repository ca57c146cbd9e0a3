"""How busy the machine is while a study runs: processor, memory, disk, network and, where there is one, the GPU.

Knows a run's id; knows nothing of studies. Where a reading cannot be written the readings end, and the study goes on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

SECONDS = 15.0  # between readings, unless MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL says otherwise


class Machine:
    """Readings as ``system/…`` metrics of one run at a time, from a thread that ends with the process."""

    def __init__(self) -> None:
        self._monitor: SystemMetricsMonitor | None = None

    def watch(self, uri: str, run_id: str) -> None:
        """Go on after the run's last reading."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self.leave()
        self._monitor = SystemMetricsMonitor(run_id, sampling_interval=SECONDS, resume_logging=True, tracking_uri=uri)
        self._monitor.start()

    def leave(self, *, at_once: bool = False) -> None:
        """No further reading; waits for one that is being written, unless ``at_once``: a locked database takes long."""
        monitor, self._monitor = self._monitor, None
        if monitor is not None and at_once:
            monitor._shutdown_event.set()
        elif monitor is not None:
            monitor.finish()
