"""Pure functions and values: change, gates, masks, forecasters."""
