"""The paper's readers' 25 questions: each a function that gives a frame and numbers, and a template
that says them."""
