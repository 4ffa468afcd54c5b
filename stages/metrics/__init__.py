"""How far what the stages compute can be trusted: one metric per file."""
