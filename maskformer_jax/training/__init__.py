"""How parameters change: state, schedules, optimizer and the train step."""
