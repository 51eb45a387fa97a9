"""What each kind of gate may be asked for in a model's file. One class a kind holds the fields and their rules."""
