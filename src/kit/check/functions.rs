//! Functions of the C library that a handler should not call, since all handlers and connections of a worker share its
//! process.

/// Functions that do the same harm.
pub struct Harm {
    /// The name of the rule.
    pub rule: &'static str,
    /// The effect, and what to do instead.
    pub what: &'static str,
    /// They harm the event loop only, not a thread of the blocking style.
    pub is_of_event_loop: bool,
    /// Their names, with spaces between.
    functions: &'static str,
}

impl Harm {
    /// Whether it is done by this function.
    pub fn is_of(&self, function: &str) -> bool {
        self.functions.split(' ').any(|name| name == function)
    }
}

/// All harms, the worst first.
pub const HARMS: [Harm; 3] = [
    Harm {
        rule: "ends-worker",
        what: "which ends the worker and counts as a crash: use ws_close() or return an error",
        is_of_event_loop: false,
        functions: "exit _exit _Exit quick_exit err errx pthread_exit verr verrx",
    },
    Harm {
        rule: "process-state",
        what: "which changes the process of all handlers and connections",
        is_of_event_loop: false,
        functions: "\
            alarm bsd_signal chdir chroot clearenv close_range closefrom daemon fchdir fork nice prlimit \
            putenv setegid setenv seteuid setgid setgroups setitimer setlocale setns setpgid setpriority \
            setregid setresgid setresuid setreuid setrlimit setrlimit64 setsid setuid sigaction sigaltstack \
            signal sigprocmask sigset umask unsetenv unshare vfork",
    },
    Harm {
        rule: "blocking-call",
        what: "which may wait, and all connections of the worker with it: use the blocking style, a thread or a timer",
        is_of_event_loop: true,
        functions: "\
            __poll_chk __ppoll_chk clock_nanosleep flock getaddrinfo gethostbyname getnameinfo lockf nanosleep \
            pause pclose poll popen ppoll pselect select sem_timedwait sem_wait sigsuspend sigtimedwait \
            sigwait sigwaitinfo sleep system thrd_sleep usleep wait wait3 wait4 waitid waitpid",
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_have_their_harm() {
        let harm_of = |name: &str| HARMS.iter().find(|harm| harm.is_of(name));
        let rules = ["_exit", "chdir", "sleep", "malloc"].map(|name| harm_of(name).map(|harm| harm.rule));
        assert_eq!(rules, [Some("ends-worker"), Some("process-state"), Some("blocking-call"), None]);
        assert!(harm_of("sleep").is_some_and(|harm| harm.is_of_event_loop));
    }
}
