"""Who may use the API: tokens and the scopes they hold."""
