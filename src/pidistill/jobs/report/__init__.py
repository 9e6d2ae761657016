"""`pidistill report`: a run, or several, as one page of HTML that needs nothing but a browser."""
