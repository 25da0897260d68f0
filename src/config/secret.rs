//! Files with secrets: passwords, tokens, private keys.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Refuses a file that users beyond its owner and its group can use, as postgres does: on a machine with other users the
/// secret is no longer one. The group is allowed, since a key is often shared with a group of servers.
pub fn check_mode(path: &Path) -> Result<(), String> {
    let mode = path.metadata().map_err(|error| error.to_string())?.permissions().mode() & 0o777;
    match mode & 0o007 {
        0 => Ok(()),
        _ => Err(format!("others can read this secret, mode {mode:04o}: chmod o= {}", path.display())),
    }
}
