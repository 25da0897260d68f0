//! Settings that only a restart can change.

use super::Config;

impl Config {
    /// The settings that differ from those `before`, but can only be changed by a restart.
    pub fn fixed_changes(&self, before: &Config) -> Vec<&'static str> {
        let fixed = [
            ("control_socket", self.control.socket != before.control.socket),
            ("control_group", self.control.group != before.control.group),
            ("pid_file", self.daemon.pid_file != before.daemon.pid_file),
            ("instance", self.daemon.instance != before.daemon.instance),
        ];
        fixed.into_iter().filter(|(_, is_changed)| *is_changed).map(|(name, _)| name).collect()
    }
}
