"""What people are shown of a finished bundle: its report page, its figures, its model card."""
