"""What a foreign file, folder, config or a kill must not do."""
