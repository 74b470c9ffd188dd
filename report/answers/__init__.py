"""The answers to the questions that careful readers of the paper asked, each made from the records there are."""
