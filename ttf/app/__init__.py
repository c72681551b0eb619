"""A page to look at: which tokens go, what the model says without them, what that saves (extra ``app``).

``ttf app`` serves it. Only ``page`` imports Gradio.
"""
