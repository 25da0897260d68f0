# bash-completion reads this file when wshd is completed for the first time.
source <(wshd completions bash)
