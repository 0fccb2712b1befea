"""The doors in the shape of other products, asked as their own clients ask."""
