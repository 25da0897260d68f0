//! Files with secrets: passwords, tokens, private keys.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Refuses a file that others than its owner and group can access, as PostgreSQL does. The group is allowed, since
/// servers often share a key by a group.
pub fn check_mode(path: &Path) -> Result<(), String> {
    let mode = path.metadata().map_err(|error| error.to_string())?.permissions().mode() & 0o777;
    match mode & 0o007 {
        0 => Ok(()),
        _ => Err(format!("others can read this secret, mode {mode:04o}: chmod o= {}", path.display())),
    }
}
