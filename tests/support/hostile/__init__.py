"""What hostile code does, case by case, with what must become of it; and the ground that the cases are run on."""
