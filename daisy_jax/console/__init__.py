"""What a person sees: errors in one line, progress, tables, pictures and pages."""
