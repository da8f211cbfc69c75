"""What `/metrics` says beside the gauges of `api.readiness`: counters, histograms, workers, room, build."""
