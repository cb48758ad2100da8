"""The only SQLite: connections, the group-commit writer, migrations. Knows no job."""
