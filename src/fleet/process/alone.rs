//! For tests that fork: each runs in a process of its own. A child of the process that has all tests would keep open
//! what the others have open at that moment.

use std::process::{Command, Stdio};

/// Set where a test runs alone.
const VARIABLE: &str = "WSHD_TEST_ALONE";

/// Whether this process runs nothing but this test. If not, the test has been run in one that does, and has passed.
#[track_caller]
pub fn is_alone() -> bool {
    if std::env::var_os(VARIABLE).is_some() {
        return true;
    }
    let thread = std::thread::current();
    // The main thread has a test if there is one thread for all: then nothing runs beside it.
    let Some(test) = thread.name().filter(|name| *name != "main") else { return true };
    let output = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(VARIABLE, "1")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{test}: {}\n{text}", output.status);
    false
}
