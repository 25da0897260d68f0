//! Functions of the C library that a handler should not call, since all handlers and connections of a worker share its
//! process.

/// The harm that a function does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Harm {
    /// It ends the worker.
    Ends,
    /// It changes the process that all handlers of the worker share.
    Shared,
    /// It may wait on the event loop.
    Waits,
}

impl Harm {
    /// The name of the rule.
    pub fn rule(self) -> &'static str {
        match self {
            Harm::Ends => "ends-worker",
            Harm::Shared => "process-state",
            Harm::Waits => "blocking-call",
        }
    }

    /// The effect, and what to do instead.
    pub fn what(self) -> &'static str {
        match self {
            Harm::Ends => "which ends the worker and counts as a crash: use ws_close() or return an error",
            Harm::Shared => "which changes the process of all handlers and connections",
            Harm::Waits => {
                "which may wait, and all connections of the worker with it: use the blocking style, a thread or a timer"
            }
        }
    }
}

const ENDS: &[&str] =
    &["exit", "_exit", "_Exit", "quick_exit", "err", "errx", "pthread_exit", "verr", "verrx"];
const SHARED: &[&str] = &[
    "alarm",
    "bsd_signal",
    "chdir",
    "chroot",
    "clearenv",
    "close_range",
    "closefrom",
    "daemon",
    "fchdir",
    "fork",
    "nice",
    "prlimit",
    "putenv",
    "setegid",
    "setenv",
    "seteuid",
    "setgid",
    "setgroups",
    "setitimer",
    "setlocale",
    "setns",
    "setpgid",
    "setpriority",
    "setregid",
    "setresgid",
    "setresuid",
    "setreuid",
    "setrlimit",
    "setrlimit64",
    "setsid",
    "setuid",
    "sigaction",
    "sigaltstack",
    "signal",
    "sigprocmask",
    "sigset",
    "umask",
    "unsetenv",
    "unshare",
    "vfork",
];
const WAITS: &[&str] = &[
    "__poll_chk",
    "__ppoll_chk",
    "clock_nanosleep",
    "flock",
    "getaddrinfo",
    "gethostbyname",
    "getnameinfo",
    "lockf",
    "nanosleep",
    "pause",
    "pclose",
    "poll",
    "popen",
    "ppoll",
    "pselect",
    "select",
    "sem_timedwait",
    "sem_wait",
    "sigsuspend",
    "sigtimedwait",
    "sigwait",
    "sigwaitinfo",
    "sleep",
    "system",
    "thrd_sleep",
    "usleep",
    "wait",
    "wait3",
    "wait4",
    "waitid",
    "waitpid",
];

/// The harm of this function, if any.
pub fn harm_of(function: &str, is_event: bool) -> Option<Harm> {
    let lists = [(Harm::Ends, ENDS), (Harm::Shared, SHARED), (Harm::Waits, WAITS)];
    let found = lists.into_iter().find(|(_, list)| list.contains(&function));
    found.map(|(harm, _)| harm).filter(|harm| is_event || *harm != Harm::Waits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_have_their_harm() {
        assert_eq!(harm_of("_exit", true), Some(Harm::Ends));
        assert_eq!(harm_of("chdir", false), Some(Harm::Shared));
        assert_eq!((harm_of("sleep", true), harm_of("sleep", false)), (Some(Harm::Waits), None));
        assert_eq!(harm_of("malloc", true), None);
    }
}
