"""An exported file to decisions; nothing here needs what only training needs."""
