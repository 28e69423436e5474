"""What training needs beside the models, which know nothing of it."""
