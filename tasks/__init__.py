"""What to get right: tasks, rubrics and the bundled three. Knows no models and no levers."""
