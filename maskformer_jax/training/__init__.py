"""How parameters change: state, schedules, optimiser, sharding and the train step."""
