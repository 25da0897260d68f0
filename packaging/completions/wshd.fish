wshd completions fish | source
