"""What a run tells about itself: report, what limits it, metrics, progress, timeline. Decides nothing."""
