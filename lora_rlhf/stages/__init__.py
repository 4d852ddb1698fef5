"""The three stages of InstructGPT, and sampling between them: each a page that names the paper's steps in order."""
