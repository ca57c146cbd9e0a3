"""What a study leaves to look at: MLflow runs, figures, the report. Knows no tasks, engines or levers."""
