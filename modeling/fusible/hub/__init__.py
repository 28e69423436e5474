"""What goes to disk and to the Hub; it takes any model of transformers."""
