"""What every part uses: printing, tables and files, processes, stopping, fingerprints, number formats."""
